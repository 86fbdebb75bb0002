//! What a server's word on a session does to the session that is held: a pure function, so that every case can be tested.
//!
//! Newest wins. The higher session number is the newer one; within a session, the later file is. A lower number is accepted only
//! with a boot that is not among the device's last four and a later sign-in, while it lasts: a restored snapshot.

use bgb_protocol::ids::{BootId, ServerId, SessionNumber, UnixMillis};

use super::super::devices::PresenceState;
use super::super::servers::FileOrder;

/// Boots of a device that are remembered, the present one among them.
pub(super) const BOOTS_MAX: usize = 4;

/// The session that is held of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) state: PresenceState,
    pub(super) session: SessionNumber,
    pub(super) signed_in: UnixMillis,
    /// The session's boot first.
    pub(super) boots: Vec<BootId>,
    pub(super) server: ServerId,
    pub(super) heard: FileOrder,
    /// Whether any server has told the session's road and address.
    pub(super) has_details: bool,
}

/// A session that a server speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) boot: BootId,
    pub(super) session: SessionNumber,
    pub(super) signed_in: UnixMillis,
    pub(super) online: bool,
    pub(super) server: ServerId,
    pub(super) heard: FileOrder,
    /// The server's last full list that was taken in whole: a session that was there before it, and that it did not bring, had
    /// ended by then.
    pub(super) full: FileOrder,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The device has this session now.
    Take {
        /// Whether the session is there; else it has ended.
        online: bool,
        /// Whether the number is lower than the one before: a restored snapshot.
        restored: bool,
        /// Whether the server that had the session before is to be told.
        supersede_held: bool,
    },
    /// The same session, of which something newer is known: only what is missing is filled in.
    Complete,
    /// A session that is over, or an older word: nothing.
    Pass {
        /// Whether the server that speaks believes that it has the device, and is to be told.
        supersede_said: bool,
    },
}

const NOTHING: Judgement = Judgement::Pass { supersede_said: false };

/// Judges `said` by what is `held`; `None` before the first sign-in.
pub(super) fn judge(held: Option<&Held>, said: &Said) -> Judgement {
    let Some(held) = held else { return take(said, false, false) };
    let same_boot = held.boots.first() == Some(&said.boot);
    let may_be_there = matches!(held.state, PresenceState::Online | PresenceState::Unknown);
    let elsewhere = may_be_there && held.server != said.server;
    if said.session == held.session && same_boot {
        return judge_same(held, said);
    }
    if said.session > held.session {
        return take(said, false, elsewhere);
    }
    // That a session has ended which the site has never heard of says nothing of where the device is, and would take the place of what does.
    let restored = said.online && !held.boots.contains(&said.boot) && said.signed_in > held.signed_in;
    if restored {
        return take(said, true, elsewhere);
    }
    Judgement::Pass { supersede_said: said.online && elsewhere }
}

fn judge_same(held: &Held, said: &Said) -> Judgement {
    if held.server != said.server {
        // One session has one server; a later sign-in under the same number is the only way to another.
        return if said.signed_in > held.signed_in { take(said, false, true) } else { NOTHING };
    }
    // What a file says that is older than a whole full list has been judged by that list.
    if said.heard >= held.heard && said.heard >= said.full {
        let (restored, supersede_held) = (false, false);
        return Judgement::Take { online: said.online, restored, supersede_held };
    }
    let ended = held.state == PresenceState::Offline;
    let tells_more = if said.online { !held.has_details } else { ended };
    if tells_more { Judgement::Complete } else { NOTHING }
}

fn take(said: &Said, restored: bool, supersede_held: bool) -> Judgement {
    let online = said.online && said.heard >= said.full;
    Judgement::Take { online, restored, supersede_held }
}

/// The boots after a session of `boot`: the newest first, each once, four at most.
pub(super) fn boots_after(before: &[BootId], boot: BootId) -> Vec<BootId> {
    let mut boots = vec![boot];
    boots.extend(before.iter().filter(|known| **known != boot).take(BOOTS_MAX - 1));
    boots
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: FileOrder = FileOrder { life: 1, sequence: 5 };

    fn boot(number: u8) -> BootId {
        BootId([number; 16])
    }

    fn held() -> Held {
        Held {
            state: PresenceState::Online,
            session: SessionNumber(10),
            signed_in: UnixMillis(1_000),
            boots: vec![boot(1), boot(2)],
            server: ServerId(1),
            heard: FileOrder { life: 1, sequence: 7 },
            has_details: true,
        }
    }

    fn said() -> Said {
        Said {
            boot: boot(1),
            session: SessionNumber(10),
            signed_in: UnixMillis(1_000),
            online: true,
            server: ServerId(1),
            heard: FileOrder { life: 1, sequence: 8 },
            full: FULL,
        }
    }

    fn taken(online: bool, restored: bool, supersede_held: bool) -> Judgement {
        Judgement::Take { online, restored, supersede_held }
    }

    #[test]
    fn the_first_session_is_taken() {
        assert_eq!(judge(None, &said()), taken(true, false, false));
    }

    #[test]
    fn the_higher_session_wins_and_the_server_that_had_the_other_is_told() {
        let newer = Said { session: SessionNumber(11), server: ServerId(2), ..said() };
        assert_eq!(judge(Some(&held()), &newer), taken(true, false, true));
        let same_server = Said { server: ServerId(1), ..newer };
        assert_eq!(judge(Some(&held()), &same_server), taken(true, false, false));
        let gone = Held { state: PresenceState::Offline, ..held() };
        assert_eq!(judge(Some(&gone), &newer), taken(true, false, false));
    }

    #[test]
    fn a_servers_word_on_an_older_session_changes_nothing() {
        let older = Said { session: SessionNumber(9), ..said() };
        assert_eq!(judge(Some(&held()), &older), NOTHING);
        let offline = Said { online: false, server: ServerId(2), ..older };
        assert_eq!(judge(Some(&held()), &offline), NOTHING);
        let half_open = Said { server: ServerId(2), ..older };
        assert_eq!(judge(Some(&held()), &half_open), Judgement::Pass { supersede_said: true });
    }

    #[test]
    fn within_a_session_the_later_file_wins() {
        let gone = Said { online: false, ..said() };
        assert_eq!(judge(Some(&held()), &gone), taken(false, false, false));
        let late = Said { heard: FileOrder { life: 1, sequence: 6 }, ..gone };
        assert_eq!(judge(Some(&held()), &late), NOTHING);
        let earlier_life = Said { heard: FileOrder { life: 0, sequence: 99 }, ..gone };
        assert_eq!(judge(Some(&held()), &earlier_life), NOTHING);
    }

    #[test]
    fn a_late_word_fills_in_what_is_missing() {
        let ended = Held { state: PresenceState::Offline, has_details: false, ..held() };
        let late = Said { heard: FileOrder { life: 1, sequence: 6 }, ..said() };
        assert_eq!(judge(Some(&ended), &late), Judgement::Complete);
        assert_eq!(judge(Some(&held()), &late), NOTHING);
        let late_end = Said { online: false, ..late };
        assert_eq!(judge(Some(&ended), &late_end), Judgement::Complete);
    }

    #[test]
    fn a_lower_number_is_taken_only_from_a_new_boot_that_signed_in_later() {
        let restored =
            Said { session: SessionNumber(3), boot: boot(9), signed_in: UnixMillis(2_000), ..said() };
        assert_eq!(judge(Some(&held()), &restored), taken(true, true, false));
        let ended = Said { online: false, server: ServerId(2), ..restored };
        assert_eq!(judge(Some(&held()), &ended), NOTHING, "it says nothing of where the device is now");
        let known_boot = Said { boot: boot(2), ..restored };
        assert_eq!(judge(Some(&held()), &known_boot), NOTHING);
        let earlier = Said { signed_in: UnixMillis(1_000), ..restored };
        assert_eq!(judge(Some(&held()), &earlier), NOTHING);
        let same_number = Said { session: SessionNumber(10), ..restored };
        assert_eq!(judge(Some(&held()), &same_number), taken(true, true, false));
    }

    #[test]
    fn a_session_from_before_a_whole_list_that_did_not_bring_it_has_ended() {
        let lost = Said { session: SessionNumber(11), heard: FileOrder { life: 1, sequence: 4 }, ..said() };
        assert_eq!(judge(Some(&held()), &lost), taken(false, false, false));
        let early = FileOrder { life: 1, sequence: 3 };
        let ended = Held { state: PresenceState::Offline, heard: early, ..held() };
        let said_again = Said { heard: FileOrder { life: 1, sequence: 4 }, ..said() };
        assert_eq!(judge(Some(&ended), &said_again), NOTHING);
        assert_eq!(judge(Some(&Held { heard: early, ..held() }), &said_again), NOTHING, "the list named it");
    }

    #[test]
    fn four_boots_are_remembered_each_once() {
        let mut boots = Vec::new();
        for number in [1, 2, 1, 3, 4, 5] {
            boots = boots_after(&boots, boot(number));
        }
        assert_eq!(boots, [boot(5), boot(4), boot(3), boot(1)]);
        assert_eq!(boots_after(&boots, boot(3)), [boot(3), boot(5), boot(4), boot(1)]);
    }
}
