use super::*;

fn args(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[test]
fn the_short_way_is_what_openssh_runs() {
    let request = short_way(&args(&[
        "--home",
        "/h",
        "proxy",
        "--stdio",
        "web-1.ssh.demo",
    ]));
    assert_eq!(
        request,
        Some(StdioRequest {
            home: Some("/h".into()),
            name: "web-1.ssh.demo".into()
        })
    );
    assert!(short_way(&args(&["proxy", "--stdio", "web-1.ssh.demo"])).is_some());
}

#[test]
fn everything_else_is_parsed_in_full() {
    for other in [
        &["proxy", "--stdio", "--help"][..],
        &["proxy", "web-1"],
        &["proxy", "web-1", "--stdio"],
        &["ls"],
        &["--home"],
        &[],
    ] {
        assert_eq!(short_way(&args(other)), None, "{other:?}");
    }
}
