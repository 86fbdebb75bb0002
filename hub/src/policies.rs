//! The policy documents that hold now.
//!
//! Of each name the highest version counts, and one that withdraws its document keeps its place, so that a lower version
//! does not come back. While the rows are read anew after a reset, devices are answered from what held before: an answer is the
//! whole of a device's policy, and half of it would be taken for the whole.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use bgb_protocol::ids::DeviceId;
use bgb_protocol::policy::DOCUMENTS_PER_DEVICE_MAX;

use crate::order::PolicyOrder;
use crate::output::OrderRefusal;

/// Most names that are held. A request looks at each, which takes some microseconds; a site that needs more than some dozens
/// of documents has not understood priorities.
pub(crate) const POLICIES_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Policies {
    current: ByName,
    /// What held before the reset, until its reload is over.
    before_reset: Option<ByName>,
}

type ByName = BTreeMap<String, Arc<PolicyOrder>>;

impl Policies {
    /// Takes a document, unless a higher version of its name is here.
    pub(crate) fn on_order(&mut self, order: Arc<PolicyOrder>) -> Result<(), OrderRefusal> {
        if let Some(present) = self.current.get_mut(&order.name) {
            if order.version > present.version {
                *present = order;
            }
            return Ok(());
        }
        if self.current.len() >= POLICIES_MAX {
            let withdrawn = self.current.values().find(|order| order.withdrawn);
            let Some(name) = withdrawn.map(|order| order.name.clone()) else {
                return Err(OrderRefusal::TooManyPolicies { name: order.name.clone(), limit: POLICIES_MAX });
            };
            self.current.remove(&name);
        }
        self.current.insert(order.name.clone(), order);
        Ok(())
    }

    /// The documents for `device`, highest priority first; beyond 64 the lowest are left out.
    pub(crate) fn for_device(&self, device: DeviceId) -> Vec<Arc<PolicyOrder>> {
        let held = self.before_reset.as_ref().unwrap_or(&self.current);
        let meant = held.values().filter(|order| !order.withdrawn && order.is_for(device));
        let mut documents: Vec<_> = meant.cloned().collect();
        documents.sort_by_key(|order| Reverse(order.priority));
        documents.truncate(DOCUMENTS_PER_DEVICE_MAX);
        documents
    }

    /// Forgets all documents, and answers from them until [`on_reload_over`](Self::on_reload_over).
    pub(crate) fn on_reset(&mut self) {
        let held = std::mem::take(&mut self.current);
        self.before_reset.get_or_insert(held);
    }

    pub(crate) fn on_reload_over(&mut self) {
        self.before_reset = None;
    }
}

#[cfg(test)]
mod tests {
    use roaring::RoaringBitmap;

    use bgb_protocol::target_set::TargetSet;

    use super::*;

    fn order(name: &str, version: u64) -> PolicyOrder {
        let (name, signed) = (name.to_owned(), vec![version as u8].into());
        PolicyOrder { name, version, priority: 0, withdrawn: false, devices: None, signed }
    }

    fn names(policies: &Policies, device: u32) -> Vec<(String, u64)> {
        let documents = policies.for_device(DeviceId(device));
        documents.iter().map(|order| (order.name.clone(), order.version)).collect()
    }

    fn take(policies: &mut Policies, order: PolicyOrder) {
        policies.on_order(Arc::new(order)).unwrap();
    }

    #[test]
    fn the_highest_version_of_a_name_counts_in_whatever_order_they_come() {
        let mut policies = Policies::default();
        for version in [2, 5, 3] {
            take(&mut policies, order("base", version));
        }
        assert_eq!(names(&policies, 1), [("base".to_owned(), 5)]);
    }

    #[test]
    fn a_withdrawn_document_is_gone_and_stays_gone() {
        let mut policies = Policies::default();
        take(&mut policies, order("base", 2));
        take(&mut policies, PolicyOrder { withdrawn: true, ..order("base", 3) });
        take(&mut policies, order("base", 2));
        assert!(names(&policies, 1).is_empty());
    }

    #[test]
    fn a_device_gets_what_is_for_it_highest_priority_first() {
        let mut policies = Policies::default();
        let devices = TargetSet::new(RoaringBitmap::from_iter([7]));
        take(&mut policies, order("all", 1));
        take(&mut policies, PolicyOrder { priority: 9, devices, ..order("seven", 2) });
        assert_eq!(names(&policies, 7), [("seven".to_owned(), 2), ("all".to_owned(), 1)]);
        assert_eq!(names(&policies, 8), [("all".to_owned(), 1)]);
    }

    #[test]
    fn no_device_gets_more_than_64_documents_and_the_least_important_are_left_out() {
        let mut policies = Policies::default();
        for number in 0..70 {
            take(&mut policies, PolicyOrder { priority: number, ..order(&format!("p{number}"), 1) });
        }
        let documents = policies.for_device(DeviceId(1));
        assert_eq!(documents.len(), DOCUMENTS_PER_DEVICE_MAX);
        assert_eq!((documents[0].priority, documents[63].priority), (69, 6));
    }

    #[test]
    fn over_the_limit_a_new_name_is_refused_unless_a_withdrawn_one_can_go() {
        let mut policies = Policies::default();
        for number in 0..POLICIES_MAX {
            take(&mut policies, order(&format!("p{number}"), 1));
        }
        let refusal = policies.on_order(Arc::new(order("more", 1)));
        assert_eq!(
            refusal,
            Err(OrderRefusal::TooManyPolicies { name: "more".to_owned(), limit: POLICIES_MAX })
        );
        take(&mut policies, PolicyOrder { withdrawn: true, ..order("p7", 2) });
        take(&mut policies, order("more", 1));
        assert_eq!(policies.current.len(), POLICIES_MAX);
    }

    #[test]
    fn while_the_rows_are_read_anew_the_old_documents_are_handed_out() {
        let mut policies = Policies::default();
        take(&mut policies, order("old", 1));
        policies.on_reset();
        take(&mut policies, order("new", 2));
        policies.on_reset();
        assert_eq!(names(&policies, 1), [("old".to_owned(), 1)]);
        take(&mut policies, order("new", 2));
        policies.on_reload_over();
        assert_eq!(names(&policies, 1), [("new".to_owned(), 2)]);
    }
}
