use super::*;
use bgb_protocol::policy::{PolicyScope, PolicySettings};
use bgb_protocol::queue::Bitmap;

fn put(name: &str, audience: PolicyAudience) -> PutPolicy {
    let settings = PolicySettings::parse(r#"{"keepalive_seconds": 60}"#).unwrap();
    PutPolicy { name: name.to_owned(), priority: 5, audience, settings }
}

fn in_queue(site: &Site) -> Vec<(PolicyStatement, Option<Bitmap>)> {
    let policies = site.queue().into_iter().filter_map(|item| match item {
        QueueItem::Policy { signed, devices } => {
            Some((SignedPolicy::decode(&signed).unwrap().statement().clone(), devices))
        }
        _ => None,
    });
    policies.collect()
}

#[test]
fn a_new_version_takes_the_place_of_the_one_before() {
    let mut site = site_with(1);
    assert_eq!(site.store.put_policy(&put("base", PolicyAudience::Everyone), NOW, sign_policy).unwrap(), 1);
    assert_eq!(site.store.put_policy(&put("other", PolicyAudience::Everyone), NOW, sign_policy).unwrap(), 2);
    assert_eq!(site.store.put_policy(&put("BASE", PolicyAudience::Everyone), NOW, sign_policy).unwrap(), 3);
    let versions: Vec<_> =
        in_queue(&site).iter().map(|(policy, _)| (policy.name.clone(), policy.version)).collect();
    assert_eq!(versions, [("other".to_owned(), 2), ("base".to_owned(), 3)]);
    let rows = site.store.read().policies().unwrap();
    assert_eq!((rows.len(), rows[0].name.as_str(), rows[0].version), (2, "base", 3));
    let withdrawn = site.store.withdraw_policy("base", NOW, sign_policy).unwrap();
    let (statement, _) = in_queue(&site).pop().unwrap();
    assert_eq!((statement.version, statement.settings), (withdrawn, None));
    assert_eq!(site.store.read().policies().unwrap().len(), 1);
    assert!(matches!(site.store.withdraw_policy("base", NOW, sign_policy), Err(SiteError::NotFound { .. })));
}

#[test]
fn a_collections_document_is_issued_anew_when_its_members_change() {
    let mut site = site_with(5);
    site.store.create_collection("berlin", NOW).unwrap();
    let audience = PolicyAudience::Collection("berlin".to_owned());
    site.store.put_policy(&put("b", audience.clone()), NOW, sign_policy).unwrap();
    assert!(in_queue(&site).is_empty(), "there is nobody to issue it to yet");
    for (devices, version) in [(vec![DeviceId(1)], 2), (vec![DeviceId(4)], 3)] {
        site.store.add_members("berlin", &devices, NOW, sign_policy).unwrap();
        let queued = in_queue(&site);
        let [(statement, Some(set))] = &queued[..] else { panic!("one version at a time") };
        assert_eq!(statement.version, version);
        let set = bgb_protocol::target_set::TargetSet::new(set.read().unwrap()).unwrap();
        assert_eq!(statement.scope, PolicyScope::Set(set.digest()));
    }
    site.store.add_members("berlin", &[DeviceId(4)], NOW, sign_policy).unwrap();
    assert_eq!(in_queue(&site)[0].0.version, 3, "nothing changed");
    site.store.remove_members("berlin", &[DeviceId(1), DeviceId(4)], NOW, sign_policy).unwrap();
    let withdrawal = |site: &Site| {
        let queued = in_queue(site);
        let [(statement, None)] = &queued[..] else {
            panic!("it is withdrawn, for whoever had it: {queued:?}")
        };
        assert_eq!((&statement.scope, &statement.settings), (&PolicyScope::Everyone, &None));
        statement.version
    };
    assert_eq!(withdrawal(&site), 4);
    assert_eq!(site.store.read().policies().unwrap()[0].audience, audience);
    site.store.put_policy(&put("b", audience), NOW, sign_policy).unwrap();
    assert_eq!(withdrawal(&site), 4, "nobody has it: there is nothing to say, and nothing is taken back");
    site.store.add_members("berlin", &[DeviceId(2)], NOW, sign_policy).unwrap();
    let queued = in_queue(&site);
    let [(statement, Some(_))] = &queued[..] else { panic!("in force again: {queued:?}") };
    assert!(statement.version > 4 && statement.settings.is_some());
    site.is_sound();
}

#[test]
fn a_document_that_goes_to_an_empty_collection_is_withdrawn_from_those_who_have_it() {
    let mut site = site_with(1);
    site.store.create_collection("nobody", NOW).unwrap();
    site.store.put_policy(&put("b", PolicyAudience::Everyone), NOW, sign_policy).unwrap();
    let audience = PolicyAudience::Collection("nobody".to_owned());
    let version = site.store.put_policy(&put("b", audience), NOW, sign_policy).unwrap();
    let (statement, _) = in_queue(&site).pop().unwrap();
    assert_eq!((in_queue(&site).len(), statement.version, statement.settings), (1, version, None));
}

#[test]
fn a_new_document_takes_back_no_other_ones_withdrawal() {
    let mut site = site_with(1);
    site.store.put_policy(&put("gone", PolicyAudience::Everyone), NOW, sign_policy).unwrap();
    site.store.withdraw_policy("gone", NOW, sign_policy).unwrap();
    site.store.put_policy(&put("new", PolicyAudience::Everyone), NOW, sign_policy).unwrap();
    let queued: Vec<_> =
        in_queue(&site).into_iter().map(|(policy, _)| (policy.name, policy.settings.is_some())).collect();
    assert_eq!(queued, [("gone".to_owned(), false), ("new".to_owned(), true)]);
}

#[test]
fn a_document_that_cannot_be_is_refused() {
    let mut site = site_with(1);
    let nameless = site.store.put_policy(&put("", PolicyAudience::Everyone), NOW, sign_policy);
    assert!(matches!(nameless, Err(SiteError::BadName { .. })));
    let mut wrong = put("x", PolicyAudience::Everyone);
    wrong.settings.keepalive_seconds = Some(1);
    assert!(matches!(site.store.put_policy(&wrong, NOW, sign_policy), Err(SiteError::Policy(_))));
    let nowhere = put("x", PolicyAudience::Collection("nowhere".to_owned()));
    assert!(matches!(site.store.put_policy(&nowhere, NOW, sign_policy), Err(SiteError::NotFound { .. })));
    for number in 0..64 {
        site.store
            .put_policy(&put(&format!("d{number}"), PolicyAudience::Everyone), NOW, sign_policy)
            .unwrap();
    }
    let one_more = site.store.put_policy(&put("one more", PolicyAudience::Everyone), NOW, sign_policy);
    assert!(matches!(one_more, Err(SiteError::Limit { limit: 64, .. })));
    site.store.put_policy(&put("d7", PolicyAudience::Everyone), NOW, sign_policy).unwrap();
}
