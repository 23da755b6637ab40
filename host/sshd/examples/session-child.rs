//! What `posternd session-child` is, for this crate's tests.

fn main() {
    postern_sshd::session_child_main()
}
