//! Asking a server for the policy documents of this device, and gathering the parts of its answer.
//!
//! ```text
//!  Idle --want--> Wanted --ask--> Asked --last part--> Idle
//!                   ^---- connection lost, too slow ----'
//! ```
//!
//! It owns the number of the request, the parts and the moment of the agent's own next request. It judges no document
//! and reads no clock. Law: a want that comes while an answer is under way asks again, since that answer may have been put
//! together before what is wanted.

use bgb_protocol::message::{PolicyDocument, PolicyPart};
use bgb_protocol::policy::{DOCUMENTS_PER_DEVICE_MAX, POLICY_MINUTES_DEFAULT, PolicySettings};

use crate::random::Random;

/// Longest wait for a whole answer: the limit of download-policy.
const ANSWER_MS: u64 = 2 * 60 * 1000;

#[derive(Clone, Debug)]
enum State {
    Idle,
    Wanted,
    Asked { request: u32, by_ms: u64, parts: Vec<Option<PolicyDocument>>, count: Option<u16> },
}

/// The conversation about policy.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    state: State,
    requests: u32,
    /// When the agent asks by itself, in milliseconds since boot.
    own_ms: u64,
}

impl Exchange {
    /// Begins with a want when the device has no policy at all; else it asks at some moment of the first interval.
    pub(crate) fn new(now_ms: u64, settings: &PolicySettings, version: u64, random: &mut Random) -> Self {
        let state = if version == 0 { State::Wanted } else { State::Idle };
        Self { state, requests: 0, own_ms: now_ms + random.up_to(interval_ms(settings)) }
    }

    /// The policy is wanted as it is now.
    pub(crate) fn want(&mut self) {
        self.state = State::Wanted;
    }

    /// Whatever is due by itself at `now_ms`.
    pub(crate) fn handle_time(&mut self, now_ms: u64, settings: &PolicySettings, random: &mut Random) {
        if now_ms >= self.own_ms {
            let interval_ms = interval_ms(settings);
            self.own_ms = now_ms + random.between(interval_ms - interval_ms / 10, interval_ms);
            self.want();
        }
        if matches!(self.state, State::Asked { by_ms, .. } if now_ms >= by_ms) {
            self.state = State::Wanted;
        }
    }

    /// When [`Self::handle_time`] has something to do.
    pub(crate) fn next_deadline(&self) -> u64 {
        match &self.state {
            State::Asked { by_ms, .. } => self.own_ms.min(*by_ms),
            State::Idle | State::Wanted => self.own_ms,
        }
    }

    /// The number of the request to send, when one is wanted; the caller has a session that can carry it.
    pub(crate) fn ask(&mut self, now_ms: u64) -> Option<u32> {
        if !matches!(self.state, State::Wanted) {
            return None;
        }
        self.requests = self.requests.wrapping_add(1);
        let (request, by_ms) = (self.requests, now_ms + ANSWER_MS);
        self.state = State::Asked { request, by_ms, parts: Vec::new(), count: None };
        Some(request)
    }

    /// The session is gone, and with it the answer.
    pub(crate) fn handle_lost(&mut self) {
        if matches!(self.state, State::Asked { .. }) {
            self.state = State::Wanted;
        }
    }

    /// A part came; gives all documents when it was the last.
    ///
    /// # Errors
    /// What is wrong with the answer; then it is over.
    pub(crate) fn take(&mut self, part: PolicyPart) -> Result<Option<Vec<PolicyDocument>>, &'static str> {
        let State::Asked { request, parts, count, .. } = &mut self.state else { return Ok(None) };
        if part.request != *request {
            return Ok(None);
        }
        let taken = gather(parts, count, part);
        if !matches!(taken, Ok(false)) {
            let parts = std::mem::take(parts);
            self.state = State::Idle;
            return taken.map(|_| Some(parts.into_iter().flatten().collect()));
        }
        Ok(None)
    }
}

/// Adds a part; `true` when the answer is whole.
fn gather(
    parts: &mut Vec<Option<PolicyDocument>>,
    count: &mut Option<u16>,
    part: PolicyPart,
) -> Result<bool, &'static str> {
    if usize::from(part.count) > DOCUMENTS_PER_DEVICE_MAX {
        return Err("the server's answer has more documents than a device may have");
    }
    if *count.get_or_insert(part.count) != part.count {
        return Err("the parts of the server's answer differ in their count");
    }
    parts.resize(usize::from(part.count), None);
    match (parts.get_mut(usize::from(part.index)), part.document) {
        (Some(place), Some(document)) => *place = Some(document),
        (None, None) if part.count == 0 => {}
        _ => return Err("a part of the server's answer has no document, or no place in it"),
    }
    Ok(parts.iter().all(Option::is_some))
}

fn interval_ms(settings: &PolicySettings) -> u64 {
    u64::from(settings.policy_minutes.unwrap_or(POLICY_MINUTES_DEFAULT)) * 60 * 1000
}
