use super::*;
use bgb_protocol::ids::DeviceGuid;

#[test]
fn devices_are_numbered_from_nought_and_found_by_all_their_names() {
    let mut site = site();
    let labels = Labels::from([("town".to_owned(), "Berlin".to_owned())]);
    let folder = tempfile::tempdir().unwrap();
    let folder = crate::SiteFolder::new(folder.path());
    std::fs::create_dir(folder.authority()).unwrap();
    let authority = crate::Authority::create(&folder, "LAB".parse().unwrap(), NOW).unwrap();
    let issue = |device, guid| authority.issue_device(device, guid, NOW);
    let first = site.store.add_device("PC-1", labels.clone(), NOW, issue).unwrap();
    let second = site.store.add_device("pc-2", Labels::new(), NOW, issue).unwrap();
    assert_eq!((first.device, second.device), (DeviceId(0), DeviceId(1)));
    for text in ["pc-1", "PC-1", "0", &first.guid.to_string()] {
        let found = site.store.read().find_device(text).unwrap();
        assert_eq!((found.device, found.guid, &found.labels), (first.device, first.guid, &labels), "{text}");
        assert_eq!(found.presence.state, PresenceState::Never);
    }
    let error = site.store.read().find_device("pc-3").unwrap_err().to_string();
    assert!(error.contains("no device \"pc-3\""), "{error}");
    let known = |device, key| site.store.read().device_public_key(device, key).unwrap();
    let key = known(first.device, first.certificate.key_id).unwrap();
    assert_eq!((key.public_key, key.revoked), (first.certificate.public_key, false));
    assert_eq!(known(first.device, KeyId([0; 8])), None);
    assert_eq!(known(second.device, first.certificate.key_id), None);
}

#[test]
fn a_key_id_that_two_devices_have_is_found_for_each_of_them() {
    let mut site = site();
    let same =
        |device| CertificateRecord { key_id: KeyId([5; 8]), public_key: vec![4; 65], ..record(device) };
    site.store.add_devices(&[named("a"), named("b")], NOW, |device, _| Ok(same(device))).unwrap();
    for device in [0, 1] {
        let found = site.store.read().device_public_key(DeviceId(device), KeyId([5; 8])).unwrap();
        assert!(found.is_some(), "device {device}");
    }
    site.store.connection.execute("UPDATE certificate SET state = 2 WHERE device = 1", []).unwrap();
    let revoked = site.store.read().device_public_key(DeviceId(1), KeyId([5; 8])).unwrap().unwrap();
    assert!(revoked.revoked, "it is found all the same");
}

#[test]
fn a_name_is_taken_once_and_a_failure_adds_nothing() {
    let mut site = site_with(1);
    let twice = [named("new"), named("PC-0000000")];
    let error = site.store.add_devices(&twice, NOW, |device, _| Ok(record(device))).unwrap_err();
    assert!(matches!(&error, SiteError::NameTaken { name, .. } if name == "PC-0000000"), "{error}");
    let refused = site.store.add_devices(&[named("new")], NOW, |_, _| Err(SiteError::Busy));
    assert!(matches!(refused, Err(SiteError::Busy)));
    assert_eq!(site.store.read().site().unwrap().devices, 1);
    let added = site.store.add_devices(&[named("new")], NOW, |device, _| Ok(record(device))).unwrap();
    assert_eq!(added, DeviceId(1), "no number was lost");
}

#[test]
fn a_devices_name_is_neither_a_path_nor_another_ones_number_or_guid() {
    let mut site = site_with(1);
    let guid = site.store.read().device(DeviceId(0)).unwrap().unwrap().guid.to_string();
    let long = "x".repeat(65);
    let wrong = [
        "",
        " pc",
        "pc 1",
        "pc\n",
        &long,
        "0",
        "17",
        "a/b",
        "..",
        "-",
        "pc:1",
        &guid,
        &guid.replace('-', ""),
    ];
    for wrong in wrong {
        let added = site.store.add_devices(&[named(wrong)], NOW, |device, _| Ok(record(device)));
        assert!(matches!(added, Err(SiteError::BadName { .. })), "{wrong}");
    }
    let right = ["pc-0001", "Büro_2.lab", "10.0.0.1", "7a", &long[1..]];
    for right in right {
        site.store.add_devices(&[named(right)], NOW, |device, _| Ok(record(device))).unwrap();
    }
}

#[test]
fn a_collections_name_may_have_blanks_within_and_be_a_number() {
    let mut site = site();
    for wrong in ["", " ", " lab", "lab ", "a/b", "lab\t1", "..", &"x".repeat(65)] {
        let made = site.store.create_collection(wrong, NOW);
        assert!(matches!(made, Err(SiteError::BadName { what: "collection", .. })), "{wrong}");
    }
    for right in ["Finance laptops", "2026", "Büro_1.a-b"] {
        site.store.create_collection(right, NOW).unwrap();
    }
}

#[test]
fn pages_follow_each_other_without_gap_or_repetition() {
    let site = site_with(25);
    for filter in [DeviceFilter::All, DeviceFilter::NamePrefix("PC-000".to_owned())] {
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = site.store.read().devices(after, &filter, 10).unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.device);
            seen.extend(page.iter().map(|row| row.device.0));
        }
        assert_eq!(seen, (0..25).collect::<Vec<_>>(), "{filter:?}");
    }
    let one = DeviceFilter::NamePrefix("pc-0000007".to_owned());
    assert_eq!(site.store.read().devices(None, &one, 10).unwrap().len(), 1);
    let online = DeviceFilter::Presence(PresenceState::Online);
    assert_eq!(site.store.read().devices(None, &online, 10).unwrap().len(), 0);
    assert_eq!(site.store.read().device_counts().unwrap(), (0, 25));
}

#[test]
fn a_block_stands_in_the_queue_until_it_is_lifted() {
    let mut site = site_with(2);
    let device = DeviceId(1);
    assert!(site.store.block_device(device, "anna", NOW).unwrap());
    assert!(!site.store.block_device(device, "anna", NOW).unwrap(), "once is enough");
    assert_eq!(site.queue(), [QueueItem::Block { device }]);
    let far = NOW.plus(10 * 365 * 24 * HOUR_MS);
    site.store.sweep_queue(far).unwrap();
    assert_eq!(site.queue(), [QueueItem::Block { device }], "a block does not grow old");
    assert_eq!(site.store.read().device(device).unwrap().unwrap().state, DeviceState::Blocked);
    assert!(site.store.unblock_device(device, "anna", NOW).unwrap());
    assert!(!site.store.unblock_device(device, "anna", NOW).unwrap());
    assert_eq!(site.queue(), [QueueItem::Unblock { device }]);
    assert_eq!(site.statuses(), [2040, 2041]);
    assert!(matches!(site.store.block_device(DeviceId(9), "anna", NOW), Err(SiteError::NotFound { .. })));
}

#[test]
fn a_collections_bitmap_is_that_of_its_rows() {
    let mut site = site_with(10);
    site.store.create_collection("Berlin", NOW).unwrap();
    assert!(matches!(site.store.create_collection("berlin", NOW), Err(SiteError::NameTaken { .. })));
    let devices: Vec<_> = [3, 1, 3, 5].map(DeviceId).to_vec();
    let change = site.store.add_members("berlin", &devices, NOW, sign_policy).unwrap();
    assert_eq!(change, CollectionChange { changed: 3, members: 3 });
    let change = site.store.remove_members("Berlin", &[DeviceId(1), DeviceId(2)], NOW, sign_policy).unwrap();
    assert_eq!(change, CollectionChange { changed: 1, members: 2 });
    let members: Vec<_> = site.store.read().collection_devices("berlin").unwrap().iter().collect();
    assert_eq!(members, [3, 5]);
    let unknown = site.store.add_members("Berlin", &[DeviceId(4), DeviceId(99)], NOW, sign_policy);
    assert!(matches!(unknown, Err(SiteError::NotFound { what: "device", .. })));
    assert_eq!(site.store.read().collections(None, 10).unwrap()[0].members, 2, "all or none");
    assert!(matches!(site.store.read().collection_devices("Bonn"), Err(SiteError::NotFound { .. })));
    site.is_sound();
}

#[test]
fn a_hundred_thousand_devices_are_added_at_once() {
    let site = site_with(100_000);
    assert_eq!(site.store.read().device_counts().unwrap().1, 100_000);
    let last = site.store.read().find_device("pc-0099999").unwrap();
    assert_eq!(last.device, DeviceId(99_999));
    assert_ne!(last.guid, DeviceGuid::from_bytes([0; 16]));
}
