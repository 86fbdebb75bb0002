//! A tunnel against a model of its server, over a network that loses, cuts and repeats.

use proptest::prelude::*;

use super::*;

const ID: &str = "0000000100020000000300112233445566778899aabbccddeeff";

/// The server's end, as docs/protocol.md has it.
#[derive(Default)]
struct Model {
    is_open: bool,
    taken: Vec<u8>,
    said: Vec<u8>,
    acknowledged: usize,
}

impl Model {
    /// What is answered to a request of whose body `arrived` bytes have come.
    fn answer(&mut self, request: &Request, arrived: usize) -> (ResponseHead, Vec<u8>) {
        let number = |name: &str| {
            let query = request.target.split_once('?')?.1;
            let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.parse::<usize>().unwrap())
        };
        let body = &request.body[..arrived];
        if request.target == "/bgb/tunnel" {
            // Each opens a tunnel; that of which the agent never heard is left.
            *self = Self {
                is_open: true,
                taken: body.to_vec(),
                said: std::mem::take(&mut self.said),
                acknowledged: 0,
            };
            return (self.head(201).with("Bgb-Tunnel", ID), Vec::new());
        }
        assert!(self.is_open && request.target.starts_with(&format!("/bgb/tunnel/{ID}?")));
        let from = number("from").unwrap();
        if request.method == "POST" {
            if from > self.taken.len() {
                return (self.head(409), Vec::new());
            }
            let known = (self.taken.len() - from).min(body.len());
            self.taken.extend_from_slice(&body[known..]);
            return (self.head(204), Vec::new());
        }
        if from < self.acknowledged || from > self.said.len() {
            return (self.head(409), Vec::new());
        }
        self.acknowledged = from;
        let end = self.said.len().min(from + 1_000);
        let down = self.said[from..end].to_vec();
        let status = if down.is_empty() { 204 } else { 200 };
        (self.head(status).with("Bgb-From", from.to_string()), down)
    }

    fn head(&self, status: u16) -> ResponseHead {
        ResponseHead::new(status).with("Bgb-Received", self.taken.len().to_string())
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    RequestLost,
    RequestCut(prop::sample::Index),
    AnswerLost,
    AnsweredTwice,
    Gateway(u16),
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Say(usize),
    Read(usize),
    Request(Lane, Fate),
    /// A POST and a GET at the same time, of which the GET is answered first.
    Both,
}

fn step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![
        4 => Just(Fate::Answered),
        1 => Just(Fate::RequestLost),
        1 => any::<prop::sample::Index>().prop_map(Fate::RequestCut),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::AnsweredTwice),
        1 => prop_oneof![Just(502), Just(503), Just(504), Just(413)].prop_map(Fate::Gateway),
    ];
    let lane = prop_oneof![Just(Lane::Post), Just(Lane::Get)];
    prop_oneof![
        2 => (0usize..3_000).prop_map(Step::Send),
        2 => (0usize..3_000).prop_map(Step::Say),
        1 => (0usize..3_000).prop_map(Step::Read),
        6 => (lane, fate).prop_map(|(lane, fate)| Step::Request(lane, fate)),
        1 => Just(Step::Both),
    ]
}

/// Numbers that tell their place.
fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| (at % 251) as u8).collect()
}

fn exchange(tunnel: &mut Tunnel, model: &mut Model, lane: Lane, fate: Fate) {
    let Some(request) = tunnel.poll_request(lane, 60) else { return };
    assert_eq!(tunnel.poll_request(lane, 60), None, "one at a time");
    let arrived = match fate {
        Fate::RequestCut(at) => at.index(request.body.len() + 1),
        _ => request.body.len(),
    };
    match fate {
        Fate::RequestLost => tunnel.handle_lost(lane),
        Fate::RequestCut(_) | Fate::AnswerLost => {
            model.answer(&request, arrived);
            tunnel.handle_lost(lane);
        }
        Fate::Gateway(status) => {
            if lane == Lane::Post || status != 413 {
                tunnel.handle_answer(lane, &ResponseHead::new(status), b"<html>").unwrap();
            } else {
                tunnel.handle_lost(lane);
            }
        }
        Fate::Answered | Fate::AnsweredTwice => {
            let (mut head, mut body) = model.answer(&request, arrived);
            if matches!(fate, Fate::AnsweredTwice) {
                (head, body) = model.answer(&request, arrived);
            }
            assert_eq!(tunnel.handle_answer(lane, &head, &body), Ok(Next::GoOn));
        }
    }
}

proptest! {
    #[test]
    fn every_byte_arrives_once_and_in_its_place(steps in prop::collection::vec(step(), 0..120)) {
        let (mut tunnel, mut model) = (Tunnel::new(), Model::default());
        let (mut sent, mut heard) = (0, Vec::new());
        let mut buffer = vec![0; 4_096];
        for step in steps {
            match step {
                Step::Send(count) => sent += tunnel.send(&bytes(sent, count)),
                Step::Say(count) => {
                    let more = bytes(model.said.len(), count);
                    model.said.extend(more);
                }
                Step::Read(count) => {
                    let count = tunnel.read(&mut buffer[..count]);
                    heard.extend_from_slice(&buffer[..count]);
                }
                Step::Request(lane, fate) => exchange(&mut tunnel, &mut model, lane, fate),
                Step::Both => {
                    let (post, get) = (tunnel.poll_request(Lane::Post, 60), tunnel.poll_request(Lane::Get, 60));
                    let post = post.map(|post| model.answer(&post, post.body.len()));
                    if let Some((head, body)) = get.map(|get| model.answer(&get, 0)) {
                        tunnel.handle_answer(Lane::Get, &head, &body).unwrap();
                    }
                    if let Some((head, body)) = post {
                        tunnel.handle_answer(Lane::Post, &head, &body).unwrap();
                    }
                }
            }
            prop_assert!(tunnel.up.len() <= UP_BYTES_MAX && tunnel.down.len() <= 2 * DOWN_BYTES_MAX);
        }
        // Nothing opens a tunnel but something to send.
        sent += tunnel.send(&bytes(sent, 1));
        for _ in 0..2_000 {
            exchange(&mut tunnel, &mut model, Lane::Post, Fate::Answered);
            exchange(&mut tunnel, &mut model, Lane::Get, Fate::Answered);
            let count = tunnel.read(&mut buffer);
            heard.extend_from_slice(&buffer[..count]);
            if tunnel.is_taken() && heard.len() == model.said.len() {
                break;
            }
        }
        prop_assert_eq!(&model.taken, &bytes(0, sent));
        prop_assert_eq!(&heard, &bytes(0, model.said.len()));
    }

    #[test]
    fn no_answer_panics_and_after_a_fault_nothing_is_asked(
        answers in prop::collection::vec(
            (any::<bool>(), prop_oneof![Just(200), Just(201), Just(204), Just(409), 100u16..600],
             prop::option::of(0u64..40), prop::option::of(0u64..40), 0usize..40),
            0..20,
        ),
    ) {
        let mut tunnel = Tunnel::new();
        tunnel.send(&bytes(0, 30));
        for (is_post, status, received, from, count) in answers {
            let lane = if is_post { Lane::Post } else { Lane::Get };
            if tunnel.poll_request(lane, 60).is_none() {
                continue;
            }
            let mut head = ResponseHead::new(status).with("Bgb-Tunnel", ID);
            for (name, value) in [("Bgb-Received", received), ("Bgb-From", from)] {
                if let Some(value) = value {
                    head = head.with(name, value.to_string());
                }
            }
            if let Err(fault) = tunnel.handle_answer(lane, &head, &bytes(0, count)) {
                prop_assert_eq!(tunnel.fault(), Some(&fault));
                prop_assert_eq!(tunnel.poll_request(Lane::Post, 60), None);
                prop_assert_eq!(tunnel.poll_request(Lane::Get, 60), None);
            }
        }
    }
}

/// A tunnel that stands, and its server.
fn open() -> (Tunnel, Model) {
    let (mut tunnel, mut model) = (Tunnel::new(), Model::default());
    tunnel.send(b"hello");
    assert_eq!(tunnel.poll_request(Lane::Get, 60), None, "there is nothing to ask yet");
    exchange(&mut tunnel, &mut model, Lane::Post, Fate::Answered);
    assert!(tunnel.is_taken());
    (tunnel, model)
}

#[test]
fn requests_are_those_of_the_protocol() {
    let (mut tunnel, _) = open();
    tunnel.send(b"more");
    let post = tunnel.poll_request(Lane::Post, 60).unwrap();
    assert_eq!((post.method, post.target), ("POST", format!("/bgb/tunnel/{ID}?from=5")));
    assert_eq!(post.body, b"more");
    let get = tunnel.poll_request(Lane::Get, 20).unwrap();
    assert_eq!((get.method, get.target), ("GET", format!("/bgb/tunnel/{ID}?from=0&hold=20")));
}

#[test]
fn what_ends_a_tunnel_is_told_apart() {
    let get = |status: u16| {
        let (mut tunnel, _) = open();
        tunnel.poll_request(Lane::Get, 60).unwrap();
        tunnel.handle_answer(Lane::Get, &ResponseHead::new(status), b"")
    };
    assert_eq!(get(404), Err(Fault::Gone));
    assert_eq!(get(421), Err(Fault::OtherServer));
    assert_eq!(get(409), Err(Fault::Conflict));
    assert_eq!(get(200), Err(Fault::Field("Bgb-From")));
    assert_eq!(get(302), Err(Fault::Status(302)));
    let post = |head: ResponseHead| {
        let (mut tunnel, _) = open();
        tunnel.send(b"more");
        tunnel.poll_request(Lane::Post, 60).unwrap();
        tunnel.handle_answer(Lane::Post, &head, b"")
    };
    assert_eq!(post(ResponseHead::new(204)), Err(Fault::Field("Bgb-Received")));
    let forgotten = Fault::Received { received: 3, least: 5, most: 9 };
    assert_eq!(post(ResponseHead::new(409).with("Bgb-Received", "3")), Err(forgotten));
    let unsent = Fault::Received { received: 10, least: 5, most: 9 };
    assert_eq!(post(ResponseHead::new(204).with("Bgb-Received", "10")), Err(unsent));
}

#[test]
fn whoever_is_no_server_of_ours_opens_nothing() {
    for (head, fault) in [
        (ResponseHead::new(200), Fault::Status(200)),
        (ResponseHead::new(404), Fault::Status(404)),
        (ResponseHead::new(204), Fault::Status(204)),
        (ResponseHead::new(201), Fault::Field("Bgb-Tunnel")),
        (ResponseHead::new(201).with("Bgb-Tunnel", "../../etc"), Fault::Field("Bgb-Tunnel")),
    ] {
        let mut tunnel = Tunnel::new();
        tunnel.send(b"hello");
        tunnel.poll_request(Lane::Post, 60).unwrap();
        assert_eq!(tunnel.handle_answer(Lane::Post, &head, b""), Err(fault));
    }
}

#[test]
fn a_server_without_room_is_asked_again_after_the_pause_that_it_names() {
    let (mut tunnel, _) = open();
    for (asked, secs) in [(Some("7"), 7), (Some("0"), 1), (Some("86400"), 60), (Some("soon"), 5), (None, 5)] {
        tunnel.send(b"more");
        let request = tunnel.poll_request(Lane::Post, 60).unwrap();
        let mut head = ResponseHead::new(503).with("Bgb-Received", "5");
        if let Some(asked) = asked {
            head = head.with("Retry-After", asked);
        }
        assert_eq!(tunnel.handle_answer(Lane::Post, &head, b""), Ok(Next::Pause(secs)));
        assert!(request.target.ends_with("from=5"));
    }
}

#[test]
fn the_answer_to_a_get_tells_what_a_lost_post_has_brought() {
    let (mut tunnel, mut model) = open();
    tunnel.send(b"more");
    exchange(&mut tunnel, &mut model, Lane::Post, Fate::AnswerLost);
    assert!(!tunnel.is_taken());
    exchange(&mut tunnel, &mut model, Lane::Get, Fate::Answered);
    assert!(tunnel.is_taken());
    assert_eq!(tunnel.poll_request(Lane::Post, 60), None);
}

#[test]
fn answers_to_gets_that_come_first_are_no_stall() {
    let (mut tunnel, mut model) = open();
    for _ in 0..=STALLS_MAX {
        tunnel.send(b"result");
        let post = tunnel.poll_request(Lane::Post, 60).unwrap();
        let posted = model.answer(&post, post.body.len());
        tunnel.send(b"more");
        model.said.extend_from_slice(b"kept");
        let get = tunnel.poll_request(Lane::Get, 60).unwrap();
        let heard = model.answer(&get, 0);
        assert_eq!(tunnel.handle_answer(Lane::Get, &heard.0, &heard.1), Ok(Next::GoOn));
        assert_eq!(tunnel.handle_answer(Lane::Post, &posted.0, &posted.1), Ok(Next::GoOn));
        assert!(!tunnel.is_taken(), "there is more to send");
    }
}

#[test]
fn less_is_sent_where_less_is_taken_and_nothing_where_nothing_is() {
    let (mut tunnel, _) = open();
    assert_eq!(tunnel.send(&vec![7; 2 * UP_BYTES_MAX]), UP_BYTES_MAX);
    let mut longest = usize::MAX;
    loop {
        let request = tunnel.poll_request(Lane::Post, 60).unwrap();
        assert!(request.body.len() < longest);
        longest = request.body.len();
        match tunnel.handle_answer(Lane::Post, &ResponseHead::new(413), b"") {
            Ok(next) => assert_eq!(next, Next::GoOn),
            Err(fault) => break assert_eq!(fault, Fault::TooLarge),
        }
    }
    let (mut tunnel, _) = open();
    tunnel.send(b"more");
    for stall in 1..=STALLS_MAX {
        tunnel.poll_request(Lane::Post, 60).unwrap();
        let answer = tunnel.handle_answer(Lane::Post, &ResponseHead::new(409).with("Bgb-Received", "5"), b"");
        assert_eq!(answer.is_err(), stall == STALLS_MAX, "{answer:?}");
    }
}
