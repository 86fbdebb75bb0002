//! A server in hostile hands, as far as a device can notice: it says what it has heard before, to others or at another time, or with a
//! byte changed.
//!
//! Nothing of it may be carried out: that is for the model to say, which knows who was asked for what. What an agent may believe of it,
//! a task of its own once more, must not be done a second time.

use bgb_protocol::ids::{DeviceId, TaskId};
use bgb_protocol::message::{ServerMessage, TaskPush};

use crate::network::{End, Way};
use crate::tally::Kind;
use crate::world::World;

/// Pushes that it remembers.
const REMEMBERED_MAX: usize = 64;

/// A push that was heard.
#[derive(Clone, Debug)]
pub(crate) struct HeardPush {
    pub(crate) task: TaskId,
    pub(crate) device: DeviceId,
    pub(crate) push: TaskPush,
}

impl World {
    /// A push goes by.
    pub(crate) fn overhear(&mut self, heard: HeardPush) {
        if self.overheard.len() == REMEMBERED_MAX {
            self.overheard.remove(0);
        }
        self.overheard.push(heard);
    }

    /// The agent's server says something that its site has not.
    pub(crate) fn forge(&mut self, agent: usize) {
        let conn = self.machines[agent].conn.and_then(|id| Some((id, self.network.conns.get(&id)?)));
        let Some((id, conn)) = conn.filter(|(_, conn)| conn.server_end == End::Open) else { return };
        if conn.session.is_none() || self.overheard.is_empty() {
            return;
        }
        let place = self.dice.place(self.overheard.len());
        let mut heard = self.overheard[place].clone();
        let is_changed = self.dice.chance(500);
        if is_changed {
            let bytes = if self.dice.chance(700) { &mut heard.push.signed } else { &mut heard.push.proof };
            if bytes.is_empty() {
                return;
            }
            let at = self.dice.place(bytes.len());
            bytes[at] ^= 1 << self.dice.below(8);
        }
        let kind = if is_changed {
            Kind::PushChanged
        } else if heard.device == self.machines[agent].device {
            Kind::PushReplayed
        } else {
            Kind::PushMisdirected
        };
        if !is_changed {
            let lies = self.machines[agent].lied_to.take().filter(|(of, _)| *of == id);
            let (_, mut tasks) = lies.unwrap_or((id, Vec::new()));
            tasks.push(heard.task);
            self.machines[agent].lied_to = Some((id, tasks));
        }
        self.tally.count(kind);
        self.say(format_args!(
            "agent {agent}'s server forges: {kind:?}, task {} of device {}",
            heard.task, heard.device
        ));
        let mut bytes = Vec::new();
        ServerMessage::Task(Box::new(heard.push)).encode(&mut bytes);
        self.write(id, Way::Down, &bytes);
    }
}
