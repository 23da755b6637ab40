//! Files both ways: cat, tar, scp (old and new), sftp, rsync; by hash.

use crate::support::*;
use std::process::{Command, Stdio};

fn readable(lab: &Lab) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(lab.dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_megabytes_each_way() {
    let mut lab = Lab::new().await;
    readable(&lab);
    let big = big_file(lab.dir.path(), 200);
    let want = sha256(&big);

    let mut down = lab.ssh();
    down.arg(format!("cat {}", big.display()));
    down.stdout(std::fs::File::create(lab.path("down")).unwrap());
    assert!(spawn_and_wait(down).await);
    assert_eq!(sha256(&lab.path("down")), want);

    let mut up = lab.ssh();
    up.arg(format!("cat > {}", lab.path("up").display()));
    up.stdin(std::fs::File::open(&big).unwrap());
    assert!(spawn_and_wait(up).await);
    assert_eq!(sha256(&lab.path("up")), want);

    let down = lab.summary().await.unwrap();
    let up = lab.summary().await.unwrap();
    assert_eq!((down.bytes_in, down.bytes_out), (0, 200 << 20));
    assert_eq!((up.bytes_in, up.bytes_out), (200 << 20, 0));
}

/// Both directions full at once, through a process that reads only when it can write: what stops a connection whose loop
/// waits for a channel's consumer.
#[tokio::test(flavor = "multi_thread")]
async fn an_echo_of_everything_does_not_stop() {
    let lab = Lab::new().await;
    let big = big_file(lab.dir.path(), 100);
    let mut echo = lab.ssh();
    echo.arg("cat");
    echo.stdin(std::fs::File::open(&big).unwrap());
    echo.stdout(std::fs::File::create(lab.path("echo")).unwrap());
    assert!(spawn_and_wait(echo).await);
    assert_eq!(sha256(&lab.path("echo")), sha256(&big));
}

/// The same with a client that does not read for a while: windows run dry both ways, and come back.
#[tokio::test(flavor = "multi_thread")]
async fn an_echo_survives_a_client_that_pauses() {
    let lab = Lab::new().await;
    let big = big_file(lab.dir.path(), 60);
    let script = lab.path("slow.sh");
    std::fs::write(&script, "sleep 2; exec sha256sum\n").unwrap();
    let mut echo = lab.ssh();
    echo.arg("cat");
    echo.stdin(std::fs::File::open(&big).unwrap());
    echo.stdout(Stdio::piped());
    let mut ssh = echo.spawn().unwrap();
    let sum = Command::new("sh")
        .arg(&script)
        .stdin(ssh.stdout.take().unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = tokio::task::spawn_blocking(move || sum.wait_with_output().unwrap());
    let out = tokio::time::timeout(std::time::Duration::from_secs(60), out)
        .await
        .unwrap()
        .unwrap();
    assert!(ssh.wait().unwrap().success());
    assert_eq!(String::from_utf8_lossy(&out.stdout)[..64], sha256(&big));
}

#[tokio::test(flavor = "multi_thread")]
async fn tar_both_ways() {
    let lab = Lab::new().await;
    readable(&lab);
    let tree = lab.path("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/a"), "aaa").unwrap();
    std::fs::write(tree.join("b"), vec![b'b'; 300_000]).unwrap();
    let dir = lab.dir.path().display().to_string();
    let options = lab.options("id").join(" ");
    let host = format!("{}@127.0.0.1", login());
    let script = format!(
        "set -e; mkdir -p {dir}/back; chmod 777 {dir}/back
         tar -C {dir} -c tree | ssh {options} {host} 'mkdir {dir}/there && tar -C {dir}/there -x'
         ssh {options} {host} 'tar -C {dir}/there -c tree' < /dev/null | tar -C {dir}/back -x
         diff -r {dir}/tree {dir}/back/tree"
    );
    let mut sh = Command::new("bash");
    sh.args(["-o", "pipefail", "-c", &script])
        .stdin(Stdio::null());
    let out = run(sh).await;
    assert!(out.status.success(), "{}", text(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn scp_old_and_new() {
    let mut lab = Lab::new().await;
    readable(&lab);
    let big = big_file(lab.dir.path(), 20);
    let (want, local) = (sha256(&big), big.display().to_string());
    for (extra, what) in [(vec![], "subsystem"), (vec!["-O"], "exec")] {
        let there = lab.path(&format!("there-{what}")).display().to_string();
        let back = lab.path(&format!("back-{what}")).display().to_string();
        let out = run(lab.scp(&extra, &local, &lab.remote(&there))).await;
        assert!(out.status.success(), "{what}: {}", text(&out));
        let out = run(lab.scp(&extra, &lab.remote(&there), &back)).await;
        assert!(out.status.success(), "{what}: {}", text(&out));
        assert_eq!(sha256(back.as_ref()), want);
        for _ in 0..2 {
            assert_eq!(lab.event("exec").await.text("what"), Some(what));
        }
    }
    let out = run(lab.scp(&[], &lab.remote("/no/such/file"), "/tmp/x")).await;
    assert!(!out.status.success());
    assert!(stderr(&out).contains("No such file"), "{}", text(&out));
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_by_the_systems_server() {
    let lab = Lab::new().await;
    readable(&lab);
    let big = big_file(lab.dir.path(), 5);
    let dir = lab.dir.path().display().to_string();
    let mut sftp = lab.program("sftp");
    sftp.args(["-b", "-", &format!("{}@127.0.0.1", login())]);
    let batch = format!(
        "put {} {dir}/s1\nget {dir}/s1 {dir}/s2\nmkdir {dir}/newdir\nls -l {dir}\nrename {dir}/s1 {dir}/s3\n",
        big.display()
    );
    let out = feed(sftp, batch.into_bytes()).await;
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(sha256(&lab.path("s2")), sha256(&big));
    assert!(lab.path("newdir").is_dir() && lab.path("s3").exists() && !lab.path("s1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn rsync_both_ways() {
    let lab = Lab::new().await;
    readable(&lab);
    let tree = lab.path("tree");
    std::fs::create_dir(&tree).unwrap();
    for i in 0..200 {
        std::fs::write(
            tree.join(format!("f{i}")),
            format!("{i}").repeat(1000 * (i % 7) + 1),
        )
        .unwrap();
    }
    let rsh = format!("ssh {}", lab.options("id").join(" "));
    for (from, to) in [
        (
            format!("{}/", tree.display()),
            lab.remote(&lab.path("r1").display().to_string()),
        ),
        (
            lab.remote(&format!("{}/", lab.path("r1").display())),
            lab.path("r2").display().to_string(),
        ),
    ] {
        let mut rsync = Command::new("rsync");
        rsync
            .args(["-a", "--checksum", "-e", &rsh, &from, &to])
            .stdin(Stdio::null());
        let out = run(rsync).await;
        assert!(out.status.success(), "{}", text(&out));
    }
    let mut diff = Command::new("diff");
    diff.args(["-r".as_ref(), tree.as_os_str(), lab.path("r2").as_os_str()]);
    let out = run(diff).await;
    assert!(out.status.success(), "{}", text(&out));
}

async fn spawn_and_wait(mut command: Command) -> bool {
    let mut child = command.spawn().unwrap();
    let pid = child.id();
    let waiting = tokio::task::spawn_blocking(move || child.wait().unwrap().success());
    match tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await {
        Ok(done) => done.unwrap(),
        Err(_) => {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            panic!("still running after a minute");
        }
    }
}
