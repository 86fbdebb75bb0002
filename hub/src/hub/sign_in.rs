//! From an opened channel to an active session.
//!
//! Everything that may forbid a session is asked when the channel opens and again at its hello and when the claim is
//! granted, since orders may have come in between.

use bgb_protocol::message::{Abilities, Hello, ServerMessage, Welcome};

use super::{Hub, channel_of};
use crate::active_tasks::SignInTasks;
use crate::close_reason::CloseReason;
use crate::input::{ChannelKey, Peer};
use crate::output::Output;
use crate::session::{Active, Claim, Session, Stage, keepalive_secs, return_slot_secs};
use crate::wheel::KEY_MAX;

impl Hub {
    pub(super) fn on_opened(&mut self, channel: ChannelKey, peer: Peer) {
        assert!(channel.index <= KEY_MAX, "channels are numbered as a slab does, from the lowest free one");
        self.counters.opened += 1;
        let at = channel.index;
        if let Some(before) = self.session(at) {
            // Its transport must be gone, or the place could not have a new tenant.
            if before.generation == channel.generation {
                self.counters.stale_inputs += 1;
                return;
            }
            self.forget(at, CloseReason::TransportError);
        }
        if at as usize >= self.sessions.len() {
            self.sessions.resize_with(at as usize + 1, || None);
        }
        let is_full = self.open >= self.options.sessions_max;
        let has_ended = peer.certificate_ends <= self.time.time();
        self.open += 1;
        self.sessions[at as usize] = Some(Session::new(channel.generation, peer, self.time.tick()));
        match self.admission.check(peer.device, &peer.fingerprint) {
            Err(reason) => self.end(at, reason),
            Ok(()) if is_full => self.end(at, CloseReason::ServerFull),
            Ok(()) if has_ended => self.end(at, CloseReason::CertificateEnded),
            Ok(()) => self.arm(at),
        }
    }

    pub(super) fn on_hello(&mut self, at: u32, hello: Hello) {
        let Some(session) = self.session_mut(at) else { return };
        let Stage::AwaitingHello { address } = session.stage else {
            return self.end(at, CloseReason::NotAllowed);
        };
        let (device, fingerprint, channel) = (session.device, session.fingerprint, channel_of(at, session));
        if let Err(reason) = self.admission.check(device, &fingerprint) {
            return self.end(at, reason);
        }
        let (boot, number) = (hello.boot, hello.session);
        if let Some(session) = self.session_mut(at) {
            session.stage = Stage::Claiming(Box::new(Claim { address, hello }));
        }
        self.outputs.push_back(Output::Claim { channel, device, boot, session: number });
    }

    pub(super) fn on_claimed(&mut self, at: u32, granted: Option<u64>) {
        let Some(session) = self.session_mut(at) else { return };
        let Stage::Claiming(claim) = &session.stage else { return };
        let (device, fingerprint) = (session.device, session.fingerprint);
        let Some(number) = granted else {
            // Nothing was claimed, so nothing is to be released.
            session.stage = Stage::AwaitingHello { address: claim.address };
            return self.end(at, CloseReason::OlderSession);
        };
        if let Err(reason) = self.admission.check(device, &fingerprint) {
            return self.end(at, reason);
        }
        if let Some(&before) = self.registry.get(&device) {
            self.end(before, CloseReason::Superseded);
        }
        self.welcome(at, number);
    }

    /// The claim at `at` becomes an active session, and hears what there is for it.
    fn welcome(&mut self, at: u32, number: u64) {
        let Self { options, time, .. } = self;
        let Some(session) = self.sessions[at as usize].as_mut() else { return };
        let (device, channel) = (session.device, channel_of(at, session));
        session.last_seen = time.tick();
        let Stage::Claiming(claim) = &session.stage else { return };
        let asked = claim.hello.keepalive_secs;
        let keepalive_secs = keepalive_secs(asked, options.keepalive_secs, device, options.jitter_seed);
        let slot_secs = return_slot_secs(options.reconnect_window_secs, device, options.jitter_seed);
        let active = Stage::Active(Active::new(&claim.hello, keepalive_secs, time));
        let Stage::Claiming(mut claim) = std::mem::replace(&mut session.stage, active) else { return };
        let known_tasks = std::mem::take(&mut claim.hello.known_tasks);
        let online = session.active().map(|active| active.online_row(device, *claim));
        let welcome = Welcome {
            server: options.server,
            head: time.head(),
            keepalive_secs,
            reconnect_window_secs: options.reconnect_window_secs,
            reconnect_slot_secs: Some(slot_secs),
            other_servers: options.other_servers.clone(),
            abilities: Abilities::ALL,
        };
        self.registry.insert(device, at);
        self.counters.signed_in += 1;
        self.outputs.extend(online.map(|row| Output::Online { channel, claim: number, row }));
        self.send(channel, ServerMessage::Welcome(Box::new(welcome)));
        self.arm(at);
        let SignInTasks { hints, cancels, pushes } =
            self.tasks.on_sign_in(device, &known_tasks, self.time.time());
        for (task, state) in hints {
            self.hint(device, task, state);
        }
        for signed in cancels {
            self.counters.cancels += 1;
            self.send(channel, ServerMessage::Cancel(signed.to_vec()));
        }
        self.push_first(at, &pushes);
    }
}
