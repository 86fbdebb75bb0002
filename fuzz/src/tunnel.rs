//! Long-poll: both ends of a tunnel with a line between them that loses, repeats, cuts and holds up, and each end with whatever a stranger says.

use bgb_http::tunnel::client::{Lane, Tunnel as AgentEnd};
use bgb_http::tunnel::server::{Misstep, Tunnel as ServerEnd};
use bgb_http::tunnel::{TunnelId, TunnelRequest};
use bgb_http::{Decoded, RequestHead, ResponseHead};

use crate::bytes::Bytes;

/// The tunnel's name, where one is needed.
const ID: TunnelId = TunnelId { server: 1, shard: 0, slot: 7, secret: [5; 16] };

/// The first byte says which of the two it is.
pub(crate) fn tunnel(data: &[u8]) {
    let mut bytes = Bytes(data);
    match bytes.below(2) {
        0 => between_two(&mut bytes),
        _ => among_strangers(&mut bytes),
    }
}

/// What is on its way, or was: an answer may come late, and the server may see a request more than once.
struct Line {
    agent: AgentEnd,
    server: ServerEnd<u32>,
    is_open: bool,
    /// Requests under way: the POST's offset and bytes; the GET's offset.
    post: Option<(u64, Vec<u8>)>,
    get: Option<u64>,
    asked: u32,
    sent: Vec<u8>,
    taken: Vec<u8>,
    pushed: Vec<u8>,
    heard: Vec<u8>,
}

/// Laws: each side has heard what the other said, from its beginning on and in order, whatever the line does.
fn between_two(bytes: &mut Bytes<'_>) {
    let mut line = Line {
        agent: AgentEnd::new(),
        server: ServerEnd::default(),
        is_open: false,
        post: None,
        get: None,
        asked: 0,
        sent: Vec::new(),
        taken: Vec::new(),
        pushed: Vec::new(),
        heard: Vec::new(),
    };
    while !bytes.is_empty() && line.agent.fault().is_none() {
        match bytes.below(8) {
            0 => {
                let said = bytes.piece();
                let taken = line.agent.send(said);
                line.sent.extend_from_slice(&said[..taken]);
            }
            1 => {
                let said = bytes.piece();
                line.server.push(said);
                line.pushed.extend_from_slice(said);
            }
            2 => line.ask_post(),
            3 => line.ask_get(),
            choice @ (4 | 5) => line.arrive_post(bytes.wide() as usize, choice == 4),
            choice => line.arrive_get(choice == 6, bytes.below(4) == 0),
        }
        line.read();
    }
    assert!(line.sent.starts_with(&line.taken), "the server has taken what was not sent");
    assert!(line.pushed.starts_with(&line.heard), "the agent has heard what was not said");
    assert_eq!(line.agent.fault(), None, "a line that only loses and repeats ends no tunnel");
    line.settle();
    assert_eq!((line.taken, line.heard), (line.sent, line.pushed), "not all has arrived");
}

impl Line {
    fn ask_post(&mut self) {
        if let Some(request) = self.agent.poll_request(Lane::Post, 60) {
            let from = match asked(request.method, &request.target) {
                TunnelRequest::Open => 0,
                TunnelRequest::Up { id, from } => {
                    assert_eq!(id, ID);
                    from
                }
                other => panic!("a POST asks for {other:?}"),
            };
            self.post = Some((from, request.body));
        }
    }

    fn ask_get(&mut self) {
        if let Some(request) = self.agent.poll_request(Lane::Get, 60) {
            let TunnelRequest::Down { id, from, hold_secs: 60 } = asked(request.method, &request.target)
            else {
                panic!("a GET asks for {}", request.target)
            };
            assert_eq!(id, ID);
            self.get = Some(from);
        }
    }

    /// So many bytes of the POST arrive; of a whole one the answer comes back, if `is_answered`.
    fn arrive_post(&mut self, arriving: usize, is_answered: bool) {
        let Some((from, body)) = self.post.clone() else { return };
        let arriving = &body[..body.len().min(arriving)];
        match self.server.take(from, arriving) {
            Ok(new) => self.taken.extend_from_slice(new),
            Err(Misstep::Skipped | Misstep::Offset) => panic!("the agent has left something out"),
        }
        // An agent that has no answer to its first POST opens another tunnel: here the line would have to lose the first one's bytes.
        let is_answered = (is_answered && arriving.len() == body.len()) || !self.is_open;
        if !self.is_open && arriving.len() < body.len() {
            return;
        }
        self.post = None;
        if !is_answered {
            return self.agent.handle_lost(Lane::Post);
        }
        let status = if self.is_open { 204 } else { 201 };
        let head = ResponseHead::new(status)
            .with("Bgb-Tunnel", ID.to_string())
            .with("Bgb-Received", self.server.received().to_string());
        self.is_open = true;
        self.agent.handle_answer(Lane::Post, &head, b"").expect("the answer is a server's");
    }

    /// The GET arrives, and is answered at once, with what there is or with nothing; the answer comes back, if `is_answered`.
    fn arrive_get(&mut self, is_answered: bool, stays: bool) {
        let Some(from) = self.get else { return };
        self.asked += 1;
        self.server.ask(from, self.asked).expect("the agent asks for what it has not heard");
        let (status, body) = match self.server.answer() {
            Some((asker, base, bytes)) => {
                assert_eq!((asker, base), (self.asked, from));
                (200, bytes.to_vec())
            }
            None => {
                assert_eq!(self.server.let_go(), Some((self.asked, from)));
                (204, Vec::new())
            }
        };
        if is_answered {
            self.get = None;
            let head = ResponseHead::new(status)
                .with("Bgb-From", from.to_string())
                .with("Bgb-Received", self.server.received().to_string());
            self.agent.handle_answer(Lane::Get, &head, &body).expect("the answer is a server's");
        } else if !stays {
            // Else the request comes a second time, as a proxy repeats one.
            self.get = None;
            self.agent.handle_lost(Lane::Get);
        }
    }

    fn read(&mut self) {
        let mut room = [0; 300];
        loop {
            let count = self.agent.read(&mut room);
            if count == 0 {
                return;
            }
            self.heard.extend_from_slice(&room[..count]);
        }
    }

    /// From now on the line loses nothing.
    fn settle(&mut self) {
        for _ in 0..64 {
            if self.taken.len() == self.sent.len() && self.heard.len() == self.pushed.len() {
                break;
            }
            self.ask_post();
            self.arrive_post(usize::MAX, true);
            self.ask_get();
            self.arrive_get(true, false);
            self.read();
        }
        // What was never opened has nothing to say.
        if !self.is_open {
            self.heard.clone_from(&self.pushed);
        }
    }
}

fn asked(method: &str, target: &str) -> TunnelRequest {
    let text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let Ok(Decoded::Complete { head, .. }) = RequestHead::decode(text.as_bytes()) else {
        panic!("the agent's own request cannot be read: {text}")
    };
    TunnelRequest::of(&head).expect("the agent's own request asks for something")
}

/// Laws: a server takes no byte twice and gives none that it has not; an agent believes no answer that cannot be; neither panics.
fn among_strangers(bytes: &mut Bytes<'_>) {
    let mut server = ServerEnd::<u8>::default();
    let mut agent = AgentEnd::new();
    let (mut pushed, mut received) = (0_u64, 0_u64);
    // Who is held: of two who ask, the later.
    let mut held: Option<u8> = None;
    while !bytes.is_empty() {
        match bytes.below(6) {
            0 => {
                let (from, body) = (offset(bytes, received), bytes.piece());
                match server.take(from, body) {
                    Ok(new) => received += new.len() as u64,
                    Err(_) => assert!(from > received),
                }
                assert_eq!(server.received(), received);
            }
            1 => {
                let (from, asker) = (offset(bytes, pushed), bytes.byte());
                if let Ok(before) = server.ask(from, asker) {
                    assert_eq!(before, held.replace(asker), "who is held no more is told");
                }
                if let Some((asker, from, given)) = server.answer() {
                    assert_eq!(Some(asker), held.take(), "somebody else is answered");
                    assert!(from + given.len() as u64 <= pushed, "more is given than there is");
                }
            }
            2 => {
                let said = bytes.piece();
                server.push(said);
                pushed += said.len() as u64;
            }
            3 => {
                agent.send(bytes.piece());
                let _ = agent.poll_request(Lane::Post, u32::from(bytes.byte()));
                let _ = agent.poll_request(Lane::Get, u32::from(bytes.byte()));
            }
            4 => {
                let lane = if bytes.below(2) == 0 { Lane::Post } else { Lane::Get };
                let mut head = ResponseHead::new(match bytes.below(8) {
                    0 => 201,
                    1 => 204,
                    2 => 200,
                    3 => 409,
                    4 => 503,
                    _ => 100 + bytes.wide() as u16 % 500,
                });
                for name in ["Bgb-Tunnel", "Bgb-Received", "Bgb-From", "Retry-After"] {
                    match bytes.below(4) {
                        0 => head = head.with(name, bytes.piece()),
                        1 => head = head.with(name, offset(bytes, 0).to_string()),
                        2 => head = head.with(name, ID.to_string()),
                        _ => {}
                    }
                }
                let was = agent.fault().cloned();
                let judged = agent.handle_answer(lane, &head, bytes.piece());
                assert!(was.is_none() || judged.err() == was, "a fault was forgotten");
                agent.read(&mut [0; 64]);
            }
            _ => {
                if let Ok(Decoded::Complete { head, .. }) = RequestHead::decode(bytes.piece())
                    && TunnelRequest::is_about(head.path())
                    && let Ok(request) = TunnelRequest::of(&head)
                {
                    assert_eq!(asked(&head.method, &request.target()), request);
                }
            }
        }
    }
}

/// Near `around`, or anywhere.
fn offset(bytes: &mut Bytes<'_>, around: u64) -> u64 {
    match bytes.below(4) {
        0 => around,
        1 => around.saturating_sub(bytes.wide()),
        2 => around.saturating_add(bytes.wide()),
        _ => bytes.take(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}
