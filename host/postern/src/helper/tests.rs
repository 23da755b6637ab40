use super::*;
use crate::frame::Reply;

fn reply(code: &str, message: &str) -> Reply {
    Reply {
        ok: false,
        code: code.into(),
        message: message.into(),
    }
}

#[test]
fn a_refusal_is_one_line_that_names_the_resource() {
    assert_eq!(
        refusal(
            "web-1.ssh.demo",
            &reply("no-agent", "no agent serves it now")
        )
        .to_string(),
        "web-1.ssh.demo: no agent serves it now"
    );
    assert_eq!(
        refusal(
            "web-1.ssh.demo",
            &reply("unknown-resource", "there is no web-1.ssh.demo")
        )
        .to_string(),
        "there is no web-1.ssh.demo"
    );
    assert_eq!(
        refusal("web-1.ssh.demo", &reply("locked", "")).to_string(),
        "web-1.ssh.demo: locked"
    );
    assert_eq!(
        refusal("web-1.ssh.demo", &reply("x", "a\nb\u{1b}[2J")).to_string(),
        "web-1.ssh.demo: a\\u{a}b\\u{1b}[2J"
    );
}
