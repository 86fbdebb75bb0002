//! A device whose TLS is not rustls: openssl's client sees a server like any other, but for its answer to a key update.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use bgb_protocol::frame::Frame;
use bgb_protocol::message::{AgentMessage, ServerMessage};

use crate::peer;
use crate::site::{Device, Site};
use crate::wait::{SOON, until, until_equal};

/// `openssl s_client`, which reads what it is to say from its input. A line that begins with K is a key update.
struct Client {
    process: Child,
    input: Option<ChildStdin>,
    said: Receiver<Vec<u8>>,
    plaintext: Vec<u8>,
}

impl Client {
    /// Connects as `device`, shows the ticket in `ticket` if there is one, and keeps the next one there.
    fn connect(site: &Site, device: &Device, ticket: &Path) -> Self {
        let address = site.server_address(1);
        let mut command = Command::new("openssl");
        command.args(["s_client", "-brief", "-tls1_3", "-alpn", "bgb/1", "-verify_return_error", "-connect"]);
        command.arg(address.to_string()).arg("-verify_ip").arg(address.ip().to_string());
        command.arg("-CAfile").arg(device.folder.join("authority.pem"));
        command.arg("-cert").arg(device.folder.join("device.pem"));
        command.arg("-key").arg(device.folder.join("device.key"));
        if ticket.exists() {
            command.arg("-sess_in").arg(ticket);
        }
        command.arg("-sess_out").arg(ticket);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("openssl is installed: scripts/setup");
        let (input, mut output) = (process.stdin.take(), process.stdout.take().unwrap());
        let (tell, said) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4_096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                if tell.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { process, input, said, plaintext: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().unwrap();
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    fn say(&mut self, message: &AgentMessage) {
        let mut frame = Vec::new();
        message.encode(&mut frame);
        self.write(&frame);
    }

    /// The server's next message.
    #[track_caller]
    fn hear(&mut self) -> ServerMessage {
        loop {
            if let Some((frame, used)) = Frame::decode(&self.plaintext).unwrap() {
                let message = ServerMessage::decode(frame).unwrap();
                self.plaintext.drain(..used);
                return message.expect("a message that is known here");
            }
            self.plaintext.extend(self.said.recv_timeout(SOON).expect("the server says something"));
        }
    }

    #[track_caller]
    fn sign_in(&mut self, session: u64) {
        self.say(&AgentMessage::Hello(Box::new(peer::hello(1, session))));
        let welcome = self.hear();
        assert!(matches!(welcome, ServerMessage::Welcome(_)), "{welcome:?}");
    }

    /// What it has to say of the connection, once that has ended; `true` when it ended as TLS ends.
    #[track_caller]
    fn end(mut self) -> (bool, String) {
        let status = until("openssl's end", SOON, || self.process.try_wait().unwrap());
        let mut told = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        (status.success(), told)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It has ended, but where a test fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn openssl_sees_no_difference_but_that_a_key_update_ends_the_session_which_it_resumes() {
    let site = Site::running(1);
    let device = site.add_device("pc-1");
    let ticket = site.path("openssl.ticket");
    let resumed = || site.metric(1, "bgb_server_handshakes_resumed_total");

    let mut client = Client::connect(&site, &device, &ticket);
    client.sign_in(1);
    // Over what is read at once, and in records of openssl's own size.
    let mut keepalives = Vec::new();
    for _ in 0..2_000 {
        AgentMessage::Keepalive.encode(&mut keepalives);
    }
    client.write(&keepalives);
    for _ in 0..2_000 {
        let answer = client.hear();
        assert!(matches!(answer, ServerMessage::KeepaliveAnswer(_)), "{answer:?}");
    }
    assert_eq!(resumed(), 0);
    client.write(b"K\n");
    let (is_sound, told) = client.end();
    assert!(is_sound, "{told}");
    for words in ["Protocol version: TLSv1.3", "Verification: OK", "KEYUPDATE"] {
        assert!(told.contains(words), "{words:?}: {told}");
    }
    until_equal("sessions", SOON, &0, || site.metric(1, "bgb_server_sessions"));

    // It comes back by the ticket that it has, says goodbye to TLS itself, and the server takes that for the end.
    let mut client = Client::connect(&site, &device, &ticket);
    client.sign_in(2);
    assert_eq!(resumed(), 1);
    client.write(b"Q\n");
    let (is_sound, told) = client.end();
    assert!(is_sound, "{told}");
    until_equal("sessions", SOON, &0, || site.metric(1, "bgb_server_sessions"));
}
