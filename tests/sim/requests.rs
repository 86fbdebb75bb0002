//! Requests and answers of long-poll on their way: between an agent's lanes (`longpoll.rs`) and the tunnels of servers (`tunnels.rs`).
//!
//! A request has one of many fates: it is lost before it reaches the server, or its answer is; either is cut within its body; a proxy makes two of it,
//! answers itself, or hands it to another server; its answer is late. What was lost is told to the agent at once, or shows when it is overdue. A link
//! that is cut holds requests and answers back. In peace only links, proxies and servers do anything to them.
//!
//! It knows what is asked as HTTP, and nothing of what streams hold.

use bgb_http::tunnel::client::{Lane, Request};
use bgb_http::{Decoded, RequestHead, ResponseHead};

use crate::network::{CONNECT_MS, ConnId, Farewell, RETRANSMISSION_MS, Way};
use crate::proxies::{Stands, Told};
use crate::servers::SERVERS;
use crate::tally::Kind;
use crate::tunnels::{Copy, HOLD_MS_MAX, SILENT_MS};
use crate::world::{Event, World};

/// Nothing of a request is under way for longer: a GET is held, and its agent or its server waits in vain.
const LINGERS_MS_MAX: u64 = HOLD_MS_MAX + SILENT_MS;
/// An agent that is told of a loss is told within this time.
const TOLD_MS_MAX: u64 = 800;
/// A gateway that does not reach the server gives up after this time.
const GATEWAY_MS: std::ops::RangeInclusive<u64> = 3_000..=25_000;

/// A request and what is to come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExchangeId(u64);

/// What is done to a request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Whole,
    LostBefore,
    LostAfter,
    /// The connection ends behind so many bytes of its body.
    Cut(usize),
    AnswerCut,
    /// The server sees it twice; the agent gets the answer to this copy.
    Repeated(usize),
    Late(u64),
    /// A proxy answers with this status, whatever the server says; whether that has the request at all.
    Gateway(u16, bool),
    /// It reaches another server.
    Astray,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) conn: ConnId,
    agent: usize,
    server: usize,
    proxy: Option<usize>,
    pub(crate) lane: Lane,
    pub(crate) head: RequestHead,
    pub(crate) body: Vec<u8>,
    asked_ms: u64,
    fate: Fate,
    /// It has a connection to be made first.
    connects: bool,
    pub(crate) copies: Vec<Copy>,
    /// What is on its way to the agent, and whether a link holds it back.
    answer: Option<(ResponseHead, Vec<u8>)>,
    is_answer_stuck: bool,
    /// It is that of a proxy at the agent: no link holds it back.
    is_answer_near: bool,
    pub(crate) agent_waits: bool,
    /// No answer comes, or none of the server's, or none soon.
    is_doomed: bool,
}

impl Exchange {
    /// The bytes of the body that ever arrive, and whether they are all.
    pub(crate) fn arriving(&self) -> (&[u8], bool) {
        match self.fate {
            Fate::Cut(at) => (&self.body[..at.min(self.body.len())], false),
            _ => (&self.body, true),
        }
    }

    /// The server that it comes to.
    pub(crate) fn server(&self) -> usize {
        if self.fate == Fate::Astray { (self.server + 1) % SERVERS } else { self.server }
    }

    fn is_over(&self) -> bool {
        !self.agent_waits && self.copies.iter().all(Copy::is_over)
    }
}

impl World {
    /// A lane makes a request.
    pub(crate) fn make_request(
        &mut self,
        id: ConnId,
        lane: Lane,
        request: &Request,
        hold_ms: u64,
        stands: bool,
    ) -> ExchangeId {
        let exchange = ExchangeId(self.network.requests_made);
        self.network.requests_made += 1;
        let conn = &self.network.conns[&id];
        let (agent, server, proxy) = (conn.agent, conn.server, conn.proxy.map(|through| through.proxy));
        let text = format!(
            "{} {} HTTP/1.1\r\nHost: server\r\nContent-Length: {}\r\n\r\n",
            request.method,
            request.target,
            request.body.len()
        );
        let head = match RequestHead::decode(text.as_bytes()) {
            Ok(Decoded::Complete { head, .. }) => head,
            other => unreachable!("a tunnel's request is one: {other:?}"),
        };
        let fate = self.draw_fate(lane, request.body.len(), proxy.is_some(), request.target.contains('?'));
        let copies = match fate {
            Fate::LostBefore | Fate::Gateway(_, false) => 0,
            Fate::Repeated(_) => 2,
            _ => 1,
        };
        let is_doomed = !matches!(fate, Fate::Whole | Fate::Repeated(_));
        let made = Exchange {
            conn: id,
            agent,
            server,
            proxy,
            lane,
            head,
            body: request.body.clone(),
            asked_ms: self.now_ms,
            fate,
            connects: !stands,
            copies: (0..copies).map(|_| Copy::default()).collect(),
            answer: None,
            is_answer_stuck: false,
            is_answer_near: false,
            agent_waits: true,
            is_doomed,
        };
        self.network.exchanges.insert(exchange, made);
        self.send_off(exchange, proxy, hold_ms, stands);
        exchange
    }

    fn draw_fate(&mut self, lane: Lane, body_bytes: usize, is_proxied: bool, is_named: bool) -> Fate {
        if self.has_healed() || !self.dice.chance(self.weather.request_fault_per_mille) {
            return Fate::Whole;
        }
        let (fate, kind) = match self.dice.below(8) {
            0 => (Fate::LostBefore, Kind::RequestLost),
            1 => (Fate::LostAfter, Kind::AnswerLost),
            2 if body_bytes > 0 => (Fate::Cut(self.dice.place(body_bytes)), Kind::RequestCut),
            2 | 3 if lane == Lane::Get => (Fate::AnswerCut, Kind::AnswerCut),
            4 if is_proxied => (Fate::Repeated(self.dice.place(2)), Kind::RequestRepeated),
            5 => (Fate::Late(self.dice.between(1_000, 45_000)), Kind::AnswerLate),
            6 if is_proxied => {
                let (status, reaches) = (self.dice.pick(&[502, 504]), self.dice.chance(500));
                (Fate::Gateway(status, reaches), Kind::GatewayAnswers)
            }
            7 if is_proxied && is_named => (Fate::Astray, Kind::RequestAstray),
            _ => (Fate::LostAfter, Kind::AnswerLost),
        };
        self.tally.count(kind);
        self.say(format_args!("a {lane:?} is {fate:?}"));
        fate
    }

    fn send_off(&mut self, exchange: ExchangeId, proxy: Option<usize>, hold_ms: u64, stands: bool) {
        let proxy = proxy.map(|proxy| &self.network.proxies[proxy]);
        let idle_ms = proxy.and_then(|proxy| proxy.idle_ms);
        let is_refused = proxy.is_some_and(|proxy| !proxy.is_up);
        let round_trips = if stands { 0 } else { 2 };
        let after_ms = self.latency_ms() * (1 + round_trips);
        if is_refused {
            if let Some(made) = self.network.exchanges.get_mut(&exchange) {
                made.copies.iter_mut().for_each(Copy::end);
            }
            return self.lose_request(exchange, Way::Down, after_ms);
        }
        let fate = self.network.exchanges[&exchange].fate;
        match fate {
            Fate::LostBefore => return self.tell_of_loss(exchange),
            Fate::Gateway(status, false) => {
                let after_ms = self.dice.between(1, 5_000);
                return self.after(after_ms, Event::GatewayAnswers { exchange, status: Some(status) });
            }
            _ => {}
        }
        self.after(after_ms, Event::RequestComes { exchange, copy: 0 });
        if let Fate::Repeated(_) = fate {
            let again_ms = after_ms + self.dice.around(2_000);
            self.after(again_ms, Event::RequestComes { exchange, copy: 1 });
        }
        if let Some(idle_ms) = idle_ms.filter(|idle_ms| *idle_ms < hold_ms) {
            let status = self.dice.pick(&[None, Some(504)]);
            self.after(idle_ms, Event::GatewayAnswers { exchange, status });
        }
    }

    /// The agent is told of a loss soon, or never.
    fn tell_of_loss(&mut self, exchange: ExchangeId) {
        if self.dice.chance(500) {
            let after_ms = self.dice.between(1, TOLD_MS_MAX);
            self.lose_request(exchange, Way::Down, after_ms);
        }
    }

    /// An end learns after a while that the request's connection is gone: the agent (down), or the server (up).
    fn lose_request(&mut self, exchange: ExchangeId, way: Way, after_ms: u64) {
        self.after(after_ms, Event::RequestLost { exchange, way });
    }

    /// Whether what is on its way between agent and server gets through, as far as links and power go.
    fn exchange_passes(&self, exchange: ExchangeId, way: Way) -> bool {
        let Some(made) = self.network.exchanges.get(&exchange) else { return false };
        self.way_passes(made.agent, made.server(), way)
    }

    /// A copy of a request, or the next piece of its body, is at the server's door.
    pub(crate) fn on_request_comes(&mut self, exchange: ExchangeId, copy: usize) {
        let passes = self.exchange_passes(exchange, Way::Up);
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        if made.copies[copy].is_over() {
            return;
        }
        if !passes {
            made.copies[copy].is_stuck = true;
            let stands_near =
                made.proxy.is_some_and(|proxy| self.network.proxies[proxy].stands == Stands::AtAgents);
            if stands_near {
                let after_ms = self.dice.between(*GATEWAY_MS.start(), *GATEWAY_MS.end());
                self.after(after_ms, Event::GatewayAnswers { exchange, status: Some(504) });
            } else if made.connects && made.copies[copy].is_new() {
                self.after(CONNECT_MS, Event::RequestUnmet { exchange });
            }
            return;
        }
        made.copies[copy].is_stuck = false;
        let server = made.server();
        if self.servers[server].process.is_none() {
            made.copies[copy].end();
            made.is_doomed = true;
            let latency_ms = self.latency_ms();
            return self.lose_request(exchange, Way::Down, latency_ms);
        }
        self.serve(exchange, copy);
    }

    /// A connection has not come about in time.
    pub(crate) fn on_request_unmet(&mut self, exchange: ExchangeId) {
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        if made.copies.iter().any(|copy| copy.is_stuck && copy.is_new()) {
            made.copies.iter_mut().for_each(Copy::end);
            self.lose_request(exchange, Way::Down, 0);
        }
    }

    /// The next piece of a body comes a moment later.
    pub(crate) fn send_on(&mut self, exchange: ExchangeId, copy: usize) {
        let after_ms = self.dice.between(0, 40);
        self.after(after_ms, Event::RequestComes { exchange, copy });
    }

    /// All that arrives of a body has arrived, and its connection is gone.
    pub(crate) fn break_off(&mut self, exchange: ExchangeId, copy: usize) {
        if let Some(made) = self.network.exchanges.get_mut(&exchange) {
            made.copies[copy].end();
        }
        self.tell_of_loss(exchange);
        self.forget_exchange(exchange);
    }

    /// A server answers a copy.
    pub(crate) fn send_back(&mut self, exchange: ExchangeId, copy: usize, head: ResponseHead, body: Vec<u8>) {
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        made.copies[copy].end();
        let (fate, agent_waits) = (made.fate, made.agent_waits);
        let answer = match fate {
            _ if !agent_waits || made.answer.is_some() => None,
            Fate::Repeated(counts) if counts != copy => None,
            Fate::LostBefore | Fate::LostAfter | Fate::AnswerCut => None,
            Fate::Gateway(status, _) => Some((ResponseHead::new(status), Vec::new())),
            _ => Some((head, body)),
        };
        match (answer, fate) {
            (Some(answer), _) => {
                made.answer = Some(answer);
                let late_ms = if let Fate::Late(late_ms) = fate { late_ms } else { 0 };
                let after_ms = self.latency_ms() + late_ms;
                self.after(after_ms, Event::AnswerComes { exchange });
            }
            (None, Fate::LostAfter) => self.tell_of_loss(exchange),
            (None, Fate::AnswerCut) => {
                let latency_ms = self.latency_ms();
                self.lose_request(exchange, Way::Down, latency_ms);
            }
            (None, _) => {}
        }
        self.forget_exchange(exchange);
    }

    pub(crate) fn on_answer_comes(&mut self, exchange: ExchangeId) {
        let passes = self.exchange_passes(exchange, Way::Down);
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        if !passes && !made.is_answer_near {
            made.is_answer_stuck = true;
            return;
        }
        made.is_answer_stuck = false;
        if let Some((head, body)) = made.answer.take() {
            self.hand_over(exchange, &head, &body);
        }
    }

    /// The agent gets its answer.
    fn hand_over(&mut self, exchange: ExchangeId, head: &ResponseHead, body: &[u8]) {
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        if !std::mem::replace(&mut made.agent_waits, false) {
            return self.forget_exchange(exchange);
        }
        let (conn, lane, asked_ms) = (made.conn, made.lane, made.asked_ms);
        self.forget_exchange(exchange);
        self.on_answer(conn, lane, asked_ms, head, body);
    }

    /// A proxy has waited long enough for the server, or does not reach it: it answers itself, or closes.
    pub(crate) fn on_gateway_answers(&mut self, exchange: ExchangeId, status: Option<u16>) {
        let now_ms = self.now_ms;
        let Some(made) = self.network.exchanges.get_mut(&exchange).filter(|made| made.agent_waits) else {
            return;
        };
        // It has come through meanwhile, and nothing is wrong with it; or its answer is on the way.
        let is_tired = made
            .proxy
            .and_then(|proxy| self.network.proxies[proxy].idle_ms)
            .is_some_and(|idle_ms| now_ms >= made.asked_ms + idle_ms);
        let is_stuck = made.copies.iter().any(|copy| copy.is_stuck);
        let is_its_own = matches!(made.fate, Fate::Gateway(_, false));
        if made.answer.is_some() || !(is_tired || is_stuck || is_its_own) {
            return;
        }
        if is_tired {
            let agent = made.agent;
            self.tally.count(Kind::ProxyCutsHeld);
            self.note_cut_in_peace(agent);
        }
        let is_untold = !self.has_healed() && self.dice.chance(200);
        if !is_untold {
            let after_ms = self.dice.between(1, TOLD_MS_MAX);
            self.lose_request(exchange, Way::Up, after_ms);
        }
        match status {
            Some(status) => {
                let stands = |proxy: usize| self.network.proxies[proxy].stands;
                let is_near = self.network.exchanges[&exchange]
                    .proxy
                    .is_some_and(|proxy| stands(proxy) == Stands::AtAgents);
                if let Some(made) = self.network.exchanges.get_mut(&exchange) {
                    made.answer = Some((ResponseHead::new(status), Vec::new()));
                    made.is_answer_near = is_near;
                }
                let latency_ms = self.latency_ms();
                self.after(latency_ms, Event::AnswerComes { exchange });
            }
            None => {
                let latency_ms = self.latency_ms();
                self.lose_request(exchange, Way::Down, latency_ms);
            }
        }
    }

    /// An end learns that the request's connection is gone.
    pub(crate) fn on_request_lost(&mut self, exchange: ExchangeId, way: Way) {
        match way {
            Way::Up => self.lose_askers(exchange),
            Way::Down => {
                let now_ms = self.now_ms;
                let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
                if !std::mem::replace(&mut made.agent_waits, false) {
                    return self.forget_exchange(exchange);
                }
                let (conn, lane, held_ms) = (made.conn, made.lane, now_ms - made.asked_ms);
                self.forget_exchange(exchange);
                self.on_lost(conn, lane, held_ms, "its connection is gone");
            }
        }
    }

    pub(crate) fn on_request_overdue(&mut self, exchange: ExchangeId) {
        let now_ms = self.now_ms;
        let Some(made) = self.network.exchanges.get_mut(&exchange).filter(|made| made.agent_waits) else {
            return;
        };
        made.agent_waits = false;
        let (conn, lane, held_ms) = (made.conn, made.lane, now_ms - made.asked_ms);
        self.tally.count(Kind::RequestOverdue);
        // The agent closes the connection that it was on, as far as that is told.
        if self.dice.chance(700) {
            let latency_ms = self.latency_ms();
            self.lose_request(exchange, Way::Up, latency_ms);
        }
        self.forget_exchange(exchange);
        self.on_lost(conn, lane, held_ms, "it is overdue");
    }

    /// The agent does not wait for it any more.
    pub(crate) fn abandon(&mut self, exchange: ExchangeId, farewell: Farewell) {
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        made.agent_waits = false;
        if farewell == Farewell::Silent {
            made.copies.iter_mut().filter(|copy| !copy.is_held()).for_each(Copy::end);
        } else {
            let latency_ms = self.latency_ms();
            self.lose_request(exchange, Way::Up, latency_ms);
        }
        self.forget_exchange(exchange);
    }

    /// A proxy, or the network, cuts all connections of a tunnel's requests.
    pub(crate) fn cut_requests(&mut self, id: ConnId, told: Told) {
        let Some(conn) = self.network.conns.get_mut(&id) else { return };
        let Some(poll) = conn.long_poll() else { return };
        for exchange in poll.under_way() {
            let Some(made) = self.network.exchanges.get_mut(&exchange) else { continue };
            made.is_doomed = true;
            made.answer = None;
            made.copies.iter_mut().filter(|copy| !copy.is_held()).for_each(Copy::end);
            // What is still answered is lost.
            made.fate = Fate::LostBefore;
            for way in [Way::Up, Way::Down].into_iter().filter(|way| told.hears(*way)) {
                let after_ms = self.dice.between(1, TOLD_MS_MAX);
                self.lose_request(exchange, way, after_ms);
            }
        }
    }

    /// Everything of a server's requests is gone with its process.
    pub(crate) fn lose_answers_of(&mut self, exchange: ExchangeId, copy: usize, farewell: Farewell) {
        let Some(made) = self.network.exchanges.get_mut(&exchange) else { return };
        made.copies[copy].end();
        made.is_doomed = true;
        if farewell != Farewell::Silent {
            let latency_ms = self.latency_ms();
            self.lose_request(exchange, Way::Down, latency_ms);
        }
        self.forget_exchange(exchange);
    }

    /// The server has let go of a request that its agent still waits for: nothing comes of it.
    pub(crate) fn doom(&mut self, exchange: ExchangeId) {
        if let Some(made) = self.network.exchanges.get_mut(&exchange) {
            made.is_doomed = true;
        }
    }

    pub(crate) fn is_exchange_sound(&self, exchange: ExchangeId) -> bool {
        self.network.exchanges.get(&exchange).is_some_and(|made| {
            !made.is_doomed && !made.is_answer_stuck && !made.copies.iter().any(|copy| copy.is_stuck)
        })
    }

    /// A request of which something is still under way long after whoever made it, and whoever was to serve it, has given it up.
    pub(crate) fn lingering_request(&self) -> Option<&Exchange> {
        let mut lingering = self.network.exchanges.iter().filter(|(exchange, made)| {
            let is_old = self.now_ms > made.asked_ms + LINGERS_MS_MAX;
            is_old && self.exchange_passes(**exchange, Way::Up)
        });
        lingering.next().map(|(_, made)| made)
    }

    /// What was held back by links comes soon.
    pub(crate) fn retransmit_requests(&mut self) {
        let exchanges: Vec<_> = self.network.exchanges.keys().copied().collect();
        for exchange in exchanges {
            let (up, down) =
                (self.exchange_passes(exchange, Way::Up), self.exchange_passes(exchange, Way::Down));
            let Some(made) = self.network.exchanges.get_mut(&exchange) else { continue };
            let stuck: Vec<_> =
                (0..made.copies.len()).filter(|copy| up && made.copies[*copy].is_stuck).collect();
            let is_answer_stuck = down && made.is_answer_stuck;
            for copy in stuck {
                let after_ms = self.dice.between(1, RETRANSMISSION_MS);
                self.after(after_ms, Event::RequestComes { exchange, copy });
            }
            if is_answer_stuck {
                let after_ms = self.dice.between(1, RETRANSMISSION_MS);
                self.after(after_ms, Event::AnswerComes { exchange });
            }
        }
    }

    pub(crate) fn forget_exchange(&mut self, exchange: ExchangeId) {
        let Some(made) = self.network.exchanges.get(&exchange).filter(|made| made.is_over()) else { return };
        let conn = made.conn;
        self.network.exchanges.remove(&exchange);
        self.forget_if_over(conn);
    }
}
