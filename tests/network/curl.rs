//! curl: what the HTTP ports say to the client that everybody has.

use std::fs;

use crate::process::{self, Ended};
use crate::proxy::Home;
use crate::site::Site;

/// A site of which only the server runs: nobody signs in.
fn server() -> Site {
    let mut site = Site::new(1);
    site.start_server(1);
    site
}

/// Runs curl with these arguments; what it writes out comes on standard output.
fn curl(site: &Site, home: &Home, arguments: &[&str]) -> Ended {
    let mut command = home.command("curl");
    // No configuration of whoever runs the test, and no proxy of theirs.
    command.args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "20"]).args(arguments);
    process::start_command(command, "curl", &site.outputs()).wait_end()
}

/// The status, as curl tells it.
#[track_caller]
fn status(site: &Site, home: &Home, arguments: &[&str]) -> String {
    let told = [&["--output", "/dev/null", "--write-out", "%{http_code} "], arguments].concat();
    let ended = curl(site, home, &told);
    assert_eq!(ended.code(), 0, "curl {arguments:?}: {}", ended.stderr);
    ended.stdout.trim().to_owned()
}

#[test]
fn curl_gets_the_answers_that_http_has_for_it() {
    let site = server();
    let home = Home::new();
    let base = format!("http://{}", site.http_address(1));
    let (root, tunnel, websocket) =
        (format!("{base}/"), format!("{base}/bgb/tunnel"), format!("{base}/bgb/websocket"));
    let long = home.write("long", &"x".repeat(300_000));
    let long = format!("@{}", long.display());
    let chunked = "Transfer-Encoding: chunked";
    for (arguments, expected) in [
        (&[&*root] as &[&str], "200"),
        (&["--head", &root], "200"),
        (&["--http1.0", &root], "200"),
        (&[&*root, "--output", "/dev/null", &root], "200 200"),
        (&[&format!("{base}/index.html")], "404"),
        (&["--request", "DELETE", &root], "405"),
        (&["--data", "x", &root], "405"),
        (&[&*tunnel], "405"),
        (&[&*websocket], "426"),
        (&["--data-binary", &long, &tunnel], "413"),
        (&["--header", chunked, "--data-binary", &long, &tunnel], "413"),
        (&["--header", "Expect: 100-continue", "--data-binary", "x", &tunnel], "201"),
        (&["--header", chunked, "--data-binary", "x", &tunnel], "201"),
        (&[&format!("{tunnel}/00000002{}?from=0", "0".repeat(44))], "421"),
        // It asks for HTTP/2 by an upgrade, which nobody has to grant (RFC 9110, 7.8).
        (&["--http2", &root], "200"),
    ] {
        assert_eq!(status(&site, &home, arguments), expected, "curl {arguments:?}");
    }
    let about = curl(&site, &home, &[&root]);
    assert!(about.stdout.contains("BGB notification server"), "{}", about.stdout);
    // Two requests and one connection.
    let connects =
        ["--output", "/dev/null", &root, "--output", "/dev/null", &root, "--write-out", "%{num_connects} "];
    assert_eq!(curl(&site, &home, &connects).stdout.trim(), "1 0");
}

#[test]
fn curl_speaks_https_with_a_server_whose_authority_it_trusts_and_no_other() {
    let site = server();
    let home = Home::new();
    let url = format!("https://{}/", site.https_address(1));
    let authority = home.write("authority.pem", site.authority().certificate_pem());
    let trusts = ["--cacert", authority.to_str().unwrap()];
    assert_eq!(status(&site, &home, &[&trusts[..], &["--head", &url]].concat()), "200");
    assert_eq!(status(&site, &home, &["--insecure", &url]), "200");
    // Where two are spoken, the one that is known is.
    let version = ["--output", "/dev/null", "--write-out", "%{http_version} %{ssl_verify_result}", &url];
    assert_eq!(curl(&site, &home, &[&trusts[..], &version].concat()).stdout, "1.1 0");
    let ended = curl(&site, &home, &[&url]);
    // curl(1), exit codes: the peer's certificate cannot be verified.
    assert_eq!(ended.code(), 60, "{}", ended.stderr);
}

#[test]
fn curl_alone_opens_a_tunnel_and_hears_what_tls_says_to_no_tls() {
    let site = server();
    let home = Home::new();
    for (scheme, address) in [("http", site.http_address(1)), ("https", site.https_address(1))] {
        let base = format!("{scheme}://{address}/bgb/tunnel");
        let id = "%header{bgb-tunnel} %header{bgb-received}";
        let opened =
            curl(&site, &home, &["--insecure", "--data-binary", "no TLS at all", "--write-out", id, &base]);
        let (id, received) = opened.stdout.trim().split_once(' ').unwrap_or_else(|| {
            panic!("{scheme}: no tunnel: {:?} {}", opened.stdout, opened.stderr);
        });
        assert_eq!((id.len(), received), (52, "13"), "{scheme}");
        let down = home.path("down");
        let written = ["--insecure", "--output", down.to_str().unwrap(), "--write-out", "%{http_code}"];
        let asked = curl(&site, &home, &[&written[..], &[&format!("{base}/{id}?from=0&hold=5")]].concat());
        assert_eq!(asked.stdout, "200", "{scheme}: {}", asked.stderr);
        // A record of the type alert, and a fatal one (RFC 8446, 5.1 and 6).
        let bytes = fs::read(&down).unwrap();
        assert!(matches!(bytes[..], [21, 3, _, 0, 2, 2, _, ..]), "{scheme}: {bytes:?}");
        // It ends when its last bytes are acknowledged.
        let after = curl(
            &site,
            &home,
            &[&written[..], &[&format!("{base}/{id}?from={}&hold=5", bytes.len())]].concat(),
        );
        assert_eq!(after.stdout, "404", "{scheme}");
    }
}
