//! The PROXY protocol: whose connection it is, as haproxy says, and nobody else.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;

use bgb_protocol::message::AgentMessage;

use crate::device::{Visitor, connect_from, fleet, push_and_answer};
use crate::peer::{ByteStream, Peer};
use crate::proxy::{self, Proxy};
use crate::road::{Socket, WebSocketLine};
use crate::settings::Settings;
use crate::site::{Site, edit_toml};
use crate::wait::{SOON, until_equal};

/// Where haproxy is, as the server sees it: the address that the kernel gives to whoever asks for none.
const HAPROXY: &str = "127.0.0.1/32";
/// The devices' own.
const DEVICES: Ipv4Addr = Ipv4Addr::new(127, 1, 2, 3);

/// A site whose server takes introductions from haproxy.
fn site() -> Site {
    let mut site = Site::new(1);
    let settings =
        Settings::of("server.toml: who says whose connections they are").put("192.0.2.10/32", HAPROXY);
    edit_toml(&site.folder().server_config(bgb_protocol::ids::ServerId(1)), |config| {
        config.extend(settings.text().parse::<toml::Table>().unwrap());
    });
    site.start_manager();
    site.start_server(1);
    site
}

#[test]
fn devices_behind_haproxy_are_shown_with_their_own_addresses() {
    let site = site();
    let [tcp, http, https] = [1, 2, 3].map(|number| proxy::address(&site, number));
    let settings = Settings::of("haproxy: all three ports, and whose connections they are")
        .put("192.0.2.10:10123", tcp)
        .put("192.0.2.10:8080", http)
        .put("192.0.2.10:8443", https)
        .put("192.0.2.11:10123", site.server_address(1))
        .put("192.0.2.11:8080", site.http_address(1))
        .put("192.0.2.11:8443", site.https_address(1));
    let _haproxy = Proxy::haproxy(&site, settings.text(), "50s", &[tcp, http, https]);
    let devices = fleet(&site, 3);
    let from = |last: u8| Ipv4Addr::from(u32::from(DEVICES) + u32::from(last));
    let websocket = |to: SocketAddr, is_covered, last| {
        WebSocketLine::over(Socket::cover(connect_from(from(last), to), is_covered), to)
    };
    let lines: [(&str, Box<dyn ByteStream>); 3] = [
        ("haproxy, TCP", Box::new(connect_from(from(0), tcp))),
        ("haproxy passing on, WebSocket over HTTP", Box::new(websocket(http, false, 1))),
        ("haproxy passing on, WebSocket over HTTPS", Box::new(websocket(https, true, 2))),
    ];
    let mut visitors: Vec<_> = lines
        .into_iter()
        .zip(&devices)
        .map(|((road, line), device)| Visitor::sign_in(&site, device, road, line))
        .collect();
    site.wait_online(3);
    for (last, device) in (0..).zip(&devices) {
        let shown = site.device(device).row.address.unwrap();
        let address: IpAddr =
            shown.parse().or_else(|_| shown.parse().map(|peer: SocketAddr| peer.ip())).unwrap();
        assert_eq!(address, IpAddr::V4(from(last)), "{shown}");
        let told = site.bgb_of_site(&["device", "show", &device.name]);
        assert!(told.stdout.contains(&from(last).to_string()), "{}", told.stdout);
    }
    push_and_answer(&site, &mut visitors);
    assert_eq!(site.closed(1, "bad-proxy-header"), 0);
}

#[test]
fn who_is_to_introduce_and_does_not_is_closed_and_who_is_not_to_is_not_believed() {
    let site = site();
    let devices = fleet(&site, 2);
    // haproxy's own network, and no header: on each port.
    let addresses = [site.server_address(1), site.http_address(1), site.https_address(1)];
    for (closed, address) in (1..).zip(addresses) {
        let mut stream = TcpStream::connect(address).unwrap();
        // What else would be the first words there.
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert!(ends(&mut stream).is_empty(), "{address}");
        site.wait_closed("bad-proxy-header", closed);
    }
    // From elsewhere a header is what it is there: no TLS, no HTTP.
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x10\0\x10\0";
    for address in addresses {
        let mut stream = connect_from(DEVICES, address);
        stream.write_all(header).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answer = ends(&mut stream);
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{address}: {answer:?}");
    }
    assert_eq!(site.closed(1, "bad-proxy-header"), 3);
    // And who comes from elsewhere without one is served as ever.
    for (device, line) in devices.iter().zip([
        Box::new(connect_from(DEVICES, site.server_address(1))) as Box<dyn ByteStream>,
        Box::new(WebSocketLine::over(
            Socket::cover(connect_from(DEVICES, site.http_address(1)), false),
            site.http_address(1),
        )),
    ]) {
        let (mut peer, _) = Peer::by(&site, device, line).greet(1, 1);
        peer.say(&AgentMessage::Goodbye);
        assert!(peer.is_ended_within(SOON));
    }
    until_equal("goodbyes", SOON, &2, || site.closed(1, "goodbye"));
}

/// What comes until the other side ends it.
fn ends(stream: &mut TcpStream) -> Vec<u8> {
    let (mut heard, begun) = (Vec::new(), Instant::now());
    stream.set_read_timeout(Some(SOON)).unwrap();
    // A reset is an end as well: words of ours were left unread.
    let _ = stream.read_to_end(&mut heard);
    assert!(begun.elapsed() < SOON, "it goes on");
    heard
}
