//! The crowd: many agents on one loop.
//!
//! One thread, one poll. What comes first is what the network brings, since a task's moment is when it was heard; then what time brings
//! (connecting at the intended moments, keepalives, coming back); then, where nothing else is to be done, agents carry their tasks out.
//!
//! Connecting is open-loop: the k-th agent is meant to begin at its moment whether those before it are done or not, and its latency counts
//! from there. The window only keeps what no server would take from being asked of it; waiting for it counts as well.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bgb_protocol::ids::{SessionNumber, TaskId, UnixMillis};
use bgb_protocol::message::TaskPush;
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::task::SignedTask;
use crossbeam_channel::Receiver;
use mio::{Events, Poll};

use super::WAKER;
use super::link::{Command, Progress, Report};
use crate::client::agent::{Agent, Heard, Site};
use crate::client::line::{Dial, Ends, SOCKETS_MAX, Told};
use crate::client::road::Way;
use crate::client::speaker::Speaker;
use crate::client::subscriber::{Dialect, Subscriber};
use crate::client::tls::{TlsOfDevice, TlsOfSite};
use crate::client::transport::{How, Looked, Resumed, Transport};
use crate::clock::{SECOND_NS, now_ns};
use crate::fleet::Member;
use crate::measure::Latencies;
use crate::sources::{LOOPBACK, Sources};

/// How often a worker says how far it is.
const REPORT_NS: u64 = SECOND_NS / 4;
/// Tasks that are carried out between two looks at the network.
const CARRIED_OUT_AT_ONCE: usize = 8;
/// What a socket is asked for at once: more than a record has.
const READ_BYTES: usize = 20 * 1024;
/// The longest rest of the loop.
const REST: Duration = Duration::from_millis(20);
/// Who could not connect tries again within a second, then two, four, and so on up to this many.
const BACK_OFF_SECS_MAX: u64 = 60;

/// Where a crowd connects.
pub(crate) struct CrowdOptions {
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) way: Way,
    pub(crate) sources: Option<Sources>,
    /// Place of the first agent in the fleet.
    pub(crate) first: usize,
    /// What is spoken where it is not ours.
    pub(crate) dialect: Option<Dialect>,
    /// Of a session only its keys are kept, once it is signed in.
    pub(crate) rests: bool,
}

/// See the module.
pub(crate) struct Crowd {
    options: CrowdOptions,
    poll: Poll,
    dial: Rc<Dial>,
    clients: Vec<Client>,
    /// Who is to connect, in the order in which it is meant to.
    waiting: VecDeque<usize>,
    pace: Pace,
    moments: BinaryHeap<Reverse<(u64, usize, Moment)>>,
    work: VecDeque<(usize, Box<TaskPush>)>,
    had: HashMap<TaskId, Had>,
    connects: Connects,
    progress: Progress,
    /// What is read from a socket at once.
    room: Vec<u8>,
    plain: Vec<u8>,
    out: Vec<u8>,
    random: u64,
}

/// One agent and its connection.
struct Client {
    speaker: Speaker,
    tls: TlsOfDevice,
    transport: Option<Transport>,
    /// When it was meant to connect.
    intended_ns: u64,
    keepalive_ns: u64,
    /// It comes back so soon when it is told to; 0 when it is not.
    window_secs: u32,
    /// In that second of it, if the server said so.
    slot_secs: Option<u32>,
    /// Since when it has had no session, where it has had one.
    lost_ns: Option<u64>,
    /// Counts connections: what was meant for an earlier one is void.
    serial: u32,
}

/// When a task was had, in the order in which it was, and how many bytes it came in where nothing else came with it.
#[derive(Default)]
struct Had {
    at_ns: Vec<u64>,
    frame_bytes: usize,
}

/// What is to happen at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// The connection with this serial says that it is still there.
    Keepalive(u32),
    /// The agent connects again.
    Return,
    /// A pause that the server has asked for is over: of the connection with this serial, and that of its sockets.
    GoOn(u32, usize),
}

/// How the crowd connects.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    next_ns: u64,
    gap_ns: u64,
    window: usize,
    resumes: bool,
    returns: bool,
}

/// What connecting took.
#[derive(Default)]
struct Connects {
    latencies: Latencies,
    full: u64,
    resumed: u64,
    last_ns: u64,
}

impl Crowd {
    /// A crowd of these devices, none of them connected.
    ///
    /// # Errors
    /// When a device's key is none, or the system gives no descriptor.
    pub(crate) fn new(
        options: CrowdOptions,
        tls: &TlsOfSite,
        site: &Arc<Site>,
        members: &[Member],
        poll: Poll,
    ) -> anyhow::Result<Self> {
        // A later run's sessions have higher numbers.
        let session = SessionNumber(unix().0 / 1_000 * 1_000);
        let speaker = |member: &Member| match options.dialect {
            Some(dialect) => Ok(Speaker::Subscriber(Subscriber::new(dialect, member.number.0))),
            None => {
                let key = DeviceKey::from_pkcs8(&member.key).map_err(|error| anyhow::anyhow!("{error}"))?;
                anyhow::Ok(Speaker::Agent(Agent::new(
                    Arc::clone(site),
                    member.number,
                    Arc::new(key),
                    session,
                )))
            }
        };
        let client = |member: &Member| {
            anyhow::Ok(Client {
                speaker: speaker(member)?,
                tls: tls.device(&member.certificate, &member.key)?,
                transport: None,
                intended_ns: 0,
                keepalive_ns: 0,
                window_secs: 0,
                slot_secs: None,
                lost_ns: None,
                serial: 0,
            })
        };
        let clients = members.iter().map(client).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            random: now_ns() ^ (options.first as u64) << 32 | 1,
            dial: Rc::new(Dial::new(poll.registry(), options.way)?),
            options,
            poll,
            clients,
            waiting: VecDeque::new(),
            pace: Pace::default(),
            moments: BinaryHeap::new(),
            work: VecDeque::new(),
            had: HashMap::new(),
            connects: Connects::default(),
            progress: Progress::default(),
            room: vec![0; READ_BYTES],
            plain: Vec::with_capacity(64 * 1024),
            out: Vec::new(),
        })
    }

    /// How many agents there are.
    pub(crate) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When the system's poll fails, or nobody hears the reports any more.
    pub(crate) fn run(&mut self, orders: &Receiver<Command>) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut report_ns = now_ns();
        let mut said = Progress::default();
        loop {
            let rest = if self.work.is_empty() { self.rest() } else { Duration::ZERO };
            let asked_ns = now_ns();
            match self.poll.poll(&mut events, Some(rest)) {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            let turn_ns = now_ns();
            for event in &events {
                if event.token() != WAKER {
                    let (place, socket) = (event.token().0 / SOCKETS_MAX, event.token().0 % SOCKETS_MAX);
                    self.look(place, Told { socket, has_ended: event.is_read_closed() });
                }
            }
            for command in orders.try_iter() {
                if matches!(command, Command::Stop) {
                    return Ok(());
                }
                self.obey(command)?;
            }
            self.pass_time(now_ns());
            if events.is_empty() {
                for _ in 0..CARRIED_OUT_AT_ONCE {
                    let Some((place, push)) = self.work.pop_front() else { break };
                    self.carry_out(place, &push);
                }
            }
            let now = now_ns();
            // What the poll rested beyond what it was asked to, and what the turn took, is how late others are heard.
            let late_ns = (turn_ns - asked_ns).saturating_sub(rest.as_nanos() as u64) + (now - turn_ns);
            self.progress.late_ns = self.progress.late_ns.max(late_ns);
            if now >= report_ns {
                report_ns = now + REPORT_NS;
                if self.progress != said {
                    Report::Progress(self.progress.clone()).say()?;
                    said = Progress { late_ns: 0, ..self.progress.clone() };
                }
                self.progress.late_ns = 0;
            }
        }
    }

    /// How long nothing has to be done.
    fn rest(&self) -> Duration {
        let now = now_ns();
        let connects = !self.waiting.is_empty() && self.progress.connecting < self.pace.window;
        let connect_ns = connects.then_some(self.pace.next_ns);
        let moment_ns = self.moments.peek().map(|Reverse((at_ns, ..))| *at_ns);
        let next_ns = connect_ns.into_iter().chain(moment_ns).min();
        next_ns.map_or(REST, |at_ns| Duration::from_nanos(at_ns.saturating_sub(now)).min(REST))
    }

    fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        match command {
            Command::Connect { upto, from_ns, gap_ns, window, resumes, returns } => {
                self.pace = Pace { next_ns: from_ns, gap_ns, window, resumes, returns };
                let below = upto.saturating_sub(self.options.first).min(self.clients.len());
                self.waiting = (0..below).filter(|place| self.clients[*place].transport.is_none()).collect();
            }
            Command::Nap { one_in, turn } => {
                for place in (turn..self.clients.len()).step_by(one_in.max(1)) {
                    if self.clients[place].speaker.is_active() {
                        self.part(place);
                        self.come_back(place);
                    }
                }
            }
            Command::Disconnect => {
                self.pace.returns = false;
                self.waiting.clear();
                self.work.clear();
                self.moments.retain(|Reverse((.., moment))| *moment != Moment::Return);
                (0..self.clients.len()).for_each(|place| self.part(place));
            }
            Command::TellConnects => {
                let Connects { latencies, full, resumed, last_ns } = std::mem::take(&mut self.connects);
                Report::Connects { latencies: latencies.pack(), full, resumed, last_ns }.say()?;
            }
            Command::TellTask { task, origin_ns } => {
                let Had { at_ns, frame_bytes } = self.had.remove(&task).unwrap_or_default();
                let mut latencies = Latencies::default();
                at_ns.iter().for_each(|at_ns| latencies.record_ns(at_ns.saturating_sub(origin_ns)));
                let (first_ns, last_ns) = (at_ns.first().copied().unwrap_or(u64::MAX), at_ns.last().copied());
                let (last_ns, count) = (last_ns.unwrap_or_default(), at_ns.len() as u64);
                let latencies = latencies.pack();
                Report::Task { task, latencies, count, first_ns, last_ns, frame_bytes }.say()?;
            }
            Command::Unreadable { line, error } => {
                Report::Trouble { what: format!("{line:?} is no command: {error}") }.say()?;
            }
            Command::Stop => {}
        }
        Ok(())
    }

    /// Does what is due by now.
    fn pass_time(&mut self, now_ns: u64) {
        while let Some(Reverse((at_ns, place, moment))) = self.moments.peek().copied() {
            if at_ns > now_ns {
                break;
            }
            self.moments.pop();
            match moment {
                Moment::Keepalive(serial) if serial == self.clients[place].serial => self.keep_alive(place),
                Moment::GoOn(serial, socket) if serial == self.clients[place].serial => {
                    self.look_with(place, |transport, room, plain| transport.end_pause(socket, room, plain));
                }
                Moment::Keepalive(_) | Moment::GoOn(..) => {}
                Moment::Return => {
                    // Its latency counts from its first attempt.
                    let client = &mut self.clients[place];
                    if client.lost_ns.is_some_and(|lost_ns| client.intended_ns < lost_ns) {
                        client.intended_ns = at_ns;
                    }
                    self.connect(place);
                }
            }
        }
        while self.progress.connecting < self.pace.window && self.pace.next_ns <= now_ns {
            let Some(place) = self.waiting.pop_front() else { break };
            // Without a pace the moment is when there is room.
            let intended_ns = if self.pace.gap_ns == 0 { now_ns } else { self.pace.next_ns };
            self.pace.next_ns += self.pace.gap_ns;
            self.clients[place].intended_ns = intended_ns;
            self.connect(place);
        }
    }

    fn connect(&mut self, place: usize) {
        if self.clients[place].transport.is_some() {
            return;
        }
        let in_fleet = self.options.first + place;
        let server = self.options.servers[in_fleet % self.options.servers.len()];
        let sources = self.options.sources.or(server.ip().is_loopback().then_some(LOOPBACK));
        let source = sources.map(|sources| sources.address(in_fleet));
        let client = &mut self.clients[place];
        client.serial += 1;
        let server_speaks_first = self.options.dialect.is_some_and(Dialect::server_speaks_first);
        let how = How { resumes: self.pace.resumes, server_speaks_first };
        let ends = Ends { server, source, token: place * SOCKETS_MAX };
        match Transport::connect(&self.dial, ends, &client.tls, how) {
            Ok(transport) => {
                client.transport = Some(transport);
                self.progress.connecting += 1;
            }
            Err(error) => {
                self.progress.lost += 1;
                let is_limit = error.raw_os_error().is_some_and(|code| {
                    use rustix::io::Errno;
                    [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM]
                        .iter()
                        .any(|limit| limit.raw_os_error() == code)
                });
                if is_limit {
                    let what = format!(
                        "this machine gives no more connections: {error}; raise the limit of descriptors (ulimit -Hn), name a larger network with \
                         --sources, or give it more memory"
                    );
                    // The others would meet it as well.
                    self.waiting.clear();
                    let _ = Report::Limit { what }.say();
                } else {
                    self.come_back(place);
                }
            }
        }
    }

    /// The system says that something is to be done for an agent.
    fn look(&mut self, place: usize, told: Told) {
        self.look_with(place, |transport, room, plain| transport.look(told, room, plain));
    }

    fn look_with(
        &mut self,
        place: usize,
        look: impl FnOnce(&mut Transport, &mut [u8], &mut Vec<u8>) -> std::io::Result<Looked>,
    ) {
        let client = &mut self.clients[place];
        let Some(transport) = client.transport.as_mut() else { return };
        self.plain.clear();
        let looked = look(transport, &mut self.room, &mut self.plain);
        if let Ok(Looked { pauses, .. }) = looked
            && pauses != Looked::default().pauses
        {
            let serial = client.serial;
            for (socket, secs) in
                pauses.into_iter().enumerate().filter_map(|(socket, secs)| Some((socket, secs?)))
            {
                let at_ns = now_ns() + u64::from(secs) * SECOND_NS;
                self.moments.push(Reverse((at_ns, place, Moment::GoOn(serial, socket))));
            }
        }
        if let Ok(Looked { established: Some(resumed), .. }) = looked {
            match resumed {
                Resumed::Yes => self.connects.resumed += 1,
                Resumed::No => self.connects.full += 1,
            }
            self.out.clear();
            client.speaker.greet(&mut self.out);
            if transport.send(&self.out).is_err() {
                return self.lose(place);
            }
        }
        let plain = std::mem::take(&mut self.plain);
        let is_heard = plain.is_empty() || self.hear(place, &plain);
        self.plain = plain;
        let is_heard = is_heard && (!self.options.rests || self.come_to_rest(place));
        if let Err(error) = &looked
            && error.kind() == std::io::ErrorKind::InvalidData
            && self.clients[place].speaker.is_active()
        {
            let what = format!("a server says what is not of its road, or no TLS: {error}");
            let _ = Report::Trouble { what }.say();
        }
        if !is_heard || looked.is_err() || looked.is_ok_and(|looked| looked.is_over) {
            self.lose(place);
        }
    }

    /// Puts the session of an agent that is signed in to rest; `false` when that does not go.
    fn come_to_rest(&mut self, place: usize) -> bool {
        let Client { speaker, transport, .. } = &mut self.clients[place];
        let Some(transport) = transport.as_mut().filter(|_| speaker.is_active()) else { return true };
        let rested = transport.rest();
        if let Err(error) = &rested {
            let _ = Report::Trouble { what: format!("a session does not come to rest: {error}") }.say();
        }
        rested.is_ok()
    }

    /// An agent has heard something; `false` when it was nothing that a server says.
    fn hear(&mut self, place: usize, plain: &[u8]) -> bool {
        let mut heard = Vec::new();
        let was_active = self.clients[place].speaker.is_active();
        self.out.clear();
        if let Err(what) = self.clients[place].speaker.hear(plain, |one| heard.push(one), &mut self.out) {
            let _ = Report::Trouble { what: format!("a server says what cannot be read: {what}") }.say();
            return false;
        }
        if !self.out.is_empty() && !self.say(place) {
            return false;
        }
        let now = now_ns();
        for one in heard {
            match one {
                Heard::Welcome { keepalive_secs, slot_secs } if !was_active => {
                    self.clients[place].slot_secs = slot_secs;
                    self.welcome(place, now, keepalive_secs);
                    self.out.clear();
                    if let Speaker::Agent(agent) = &self.clients[place].speaker {
                        agent.say_again(&mut self.out);
                    }
                    if !self.out.is_empty() && !self.say(place) {
                        return false;
                    }
                }
                Heard::Welcome { .. } => {}
                Heard::Task(push) => {
                    match SignedTask::decode(&push.signed) {
                        Ok(task) => self.note_had(task.statement().task, now, plain.len()),
                        Err(_) => self.progress.refused += 1,
                    }
                    self.work.push_back((place, push));
                }
                Heard::Message(id) => self.note_had(id, now, plain.len()),
                Heard::Kept => self.progress.kept += 1,
                Heard::Drain { window_secs } => self.clients[place].window_secs = window_secs,
                Heard::Refused(reason) => {
                    let _ = Report::Trouble { what: format!("a server refuses an agent: {reason:?}") }.say();
                }
            }
        }
        true
    }

    fn note_had(&mut self, task: TaskId, now: u64, bytes: usize) {
        self.progress.had += 1;
        let had = self.had.entry(task).or_default();
        had.at_ns.push(now);
        let shortest = Some(had.frame_bytes).filter(|bytes| *bytes > 0);
        had.frame_bytes = shortest.map_or(bytes, |shortest| shortest.min(bytes));
    }

    fn welcome(&mut self, place: usize, now: u64, keepalive_secs: u32) {
        let client = &mut self.clients[place];
        self.connects.latencies.record_ns(now.saturating_sub(client.intended_ns));
        self.connects.last_ns = self.connects.last_ns.max(now);
        self.progress.connecting -= 1;
        self.progress.active += 1;
        client.lost_ns = None;
        client.window_secs = 0;
        client.keepalive_ns = u64::from(keepalive_secs) * SECOND_NS;
        self.plan_keepalive(place, now);
    }

    /// The agent speaks again after 90 to 100 % of its interval (docs/protocol.md).
    fn plan_keepalive(&mut self, place: usize, now: u64) {
        let Client { keepalive_ns, serial, .. } = self.clients[place];
        let at_ns = now + keepalive_ns - self.below(keepalive_ns / 10 + 1);
        self.moments.push(Reverse((at_ns, place, Moment::Keepalive(serial))));
    }

    fn keep_alive(&mut self, place: usize) {
        if !self.clients[place].speaker.is_active() {
            return;
        }
        self.out.clear();
        self.clients[place].speaker.keep_alive(&mut self.out);
        if self.say(place) {
            self.progress.keepalives += 1;
            self.plan_keepalive(place, now_ns());
        }
    }

    fn carry_out(&mut self, place: usize, push: &TaskPush) {
        self.out.clear();
        let Speaker::Agent(agent) = &mut self.clients[place].speaker else { return };
        match agent.carry_out(push, unix(), &mut self.out) {
            Ok(_) => {
                if self.say(place) {
                    self.progress.answered += 1;
                }
            }
            Err(why) => {
                self.progress.refused += 1;
                let _ = Report::Trouble { what: format!("a task is not as it must be: {why}") }.say();
            }
        }
    }

    /// Says what is in `out`; `false` when the connection is gone.
    fn say(&mut self, place: usize) -> bool {
        let Some(transport) = self.clients[place].transport.as_mut() else { return false };
        let is_said = transport.send(&self.out).is_ok();
        if !is_said {
            self.lose(place);
        }
        is_said
    }

    /// A connection is gone.
    fn lose(&mut self, place: usize) {
        self.end(place);
        self.progress.lost += 1;
        self.come_back(place);
    }

    /// An agent ends its connection by itself.
    fn part(&mut self, place: usize) {
        if let Some(transport) = &mut self.clients[place].transport {
            transport.part();
        }
        self.end(place);
    }

    fn end(&mut self, place: usize) {
        let client = &mut self.clients[place];
        let Some(transport) = client.transport.take() else { return };
        if let Some(session) = transport.end() {
            client.tls.take_back(session);
        }
        if client.speaker.is_active() {
            self.progress.active -= 1;
        } else {
            self.progress.connecting -= 1;
        }
        client.speaker.lose();
    }

    /// Who was lost comes back as a real agent does: within the window that it was told, or in no more than the time that
    /// it has been failing.
    fn come_back(&mut self, place: usize) {
        if !self.pace.returns {
            return;
        }
        let now = now_ns();
        let client = &mut self.clients[place];
        let failing_ns = now - *client.lost_ns.get_or_insert(now);
        let back_off_ns = failing_ns.clamp(SECOND_NS, BACK_OFF_SECS_MAX * SECOND_NS);
        // A drain names the first moment; whoever finds nobody then backs off as ever.
        let window_secs = std::mem::take(&mut client.window_secs);
        let (from_ns, span_ns) = match (window_secs, client.slot_secs) {
            (0, _) => (0, back_off_ns),
            (window_secs, Some(slot_secs)) if slot_secs <= window_secs => {
                (u64::from(slot_secs) * SECOND_NS, SECOND_NS)
            }
            (window_secs, _) => (0, u64::from(window_secs) * SECOND_NS),
        };
        let at_ns = now + from_ns + self.below(span_ns);
        self.moments.push(Reverse((at_ns, place, Moment::Return)));
    }

    /// A number below `end`: chance enough to spread moments.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end.max(1)
    }
}

fn unix() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(since.as_millis() as u64)
}
