use bgb_daemon::disk::SimDisk;
use bgb_protocol::policy::PolicyStatement;
use bgb_protocol::signature::SigningKey;
use bgb_protocol::target_set::TargetSet;

use super::*;

fn key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn judge() -> PolicyJudge {
    PolicyJudge {
        site: "LAB".parse().unwrap(),
        device: DeviceId(5),
        keys: TrustedKeys::new([key().public()]),
    }
}

fn statement(name: &str, version: u64, priority: i32, settings: Option<&str>) -> PolicyStatement {
    PolicyStatement {
        site: "LAB".parse().unwrap(),
        name: name.to_owned(),
        version,
        priority,
        scope: PolicyScope::Everyone,
        issued: UnixMillis(version),
        settings: settings.map(str::to_owned),
    }
}

fn signed(statement: PolicyStatement) -> PolicyDocument {
    PolicyDocument { signed: SignedPolicy::sign(statement, &key()).bytes().to_vec(), proof: Vec::new() }
}

fn document(name: &str, version: u64, priority: i32, settings: &str) -> PolicyDocument {
    signed(statement(name, version, priority, Some(settings)))
}

fn open(disk: &Arc<SimDisk>) -> Policy {
    disk.create_dir_all(Path::new("/state")).unwrap();
    Policy::open(Arc::clone(disk) as Arc<dyn Disk>, Path::new("/state"), &judge()).unwrap()
}

#[test]
fn the_higher_priority_wins_for_each_setting_and_a_restart_changes_nothing() {
    let disk = Arc::new(SimDisk::new());
    let mut policy = open(&disk);
    let documents = [
        document("low", 3, 0, r#"{"keepalive_seconds": 300, "policy_minutes": 30}"#),
        document("high", 2, 10, r#"{"keepalive_seconds": 60}"#),
    ];
    let applied = policy.apply(&documents, &judge()).unwrap();
    assert_eq!(applied.documents, [("high".to_owned(), 2), ("low".to_owned(), 3)]);
    assert_eq!((applied.is_changed, applied.issued), (true, UnixMillis(3)));
    let again = open(&disk);
    for policy in [&policy, &again] {
        let settings = policy.settings();
        assert_eq!((settings.keepalive_seconds, settings.policy_minutes), (Some(60), Some(30)));
        assert_eq!(policy.version(), 3);
    }
    assert!(!policy.apply(&documents, &judge()).unwrap().is_changed);
}

#[test]
fn a_setting_of_a_later_release_does_not_put_a_policy_out_of_force() {
    let disk = Arc::new(SimDisk::new());
    let mut policy = open(&disk);
    let json = r#"{"colour": "blue", "policy_minutes": 5, "allowed_actions": ["ping", "restart"]}"#;
    policy.apply(&[document("new", 3, 0, json)], &judge()).unwrap();
    for policy in [policy, open(&disk)] {
        assert_eq!((policy.version(), policy.settings().policy_minutes), (3, Some(5)));
        assert!(!policy.settings().allows(bgb_protocol::action::Action::FullScan));
    }
}

#[test]
fn a_document_never_goes_back_also_when_it_was_out_of_force() {
    let disk = Arc::new(SimDisk::new());
    let mut policy = open(&disk);
    policy.apply(&[document("a", 5, 0, r#"{"policy_minutes": 5}"#)], &judge()).unwrap();
    policy.apply(&[], &judge()).unwrap();
    assert_eq!(policy.settings().policy_minutes, None);
    let mut policy = open(&disk);
    let fault = policy.apply(&[document("a", 4, 0, r#"{"policy_minutes": 9}"#)], &judge()).unwrap_err();
    assert!(fault.to_string().contains("never goes back"), "{fault}");
    assert_eq!(policy.settings().policy_minutes, None);
    policy.apply(&[signed(statement("a", 6, 0, None))], &judge()).unwrap();
    assert_eq!((policy.settings().policy_minutes, policy.version()), (None, 0));
}

#[test]
fn one_bad_document_keeps_all_of_them_out() {
    let targets = TargetSet::new([4].into_iter().collect()).unwrap();
    let mut for_others = statement("others", 9, 0, Some("{}"));
    for_others.scope = PolicyScope::Set(targets.digest());
    let mut of_another_site = statement("abroad", 9, 0, Some("{}"));
    of_another_site.site = "XYZ".parse().unwrap();
    let mut altered = document("altered", 9, 0, "{}");
    altered.signed[10] ^= 1;
    for (bad, word) in [
        (signed(for_others), "not for this device"),
        (signed(of_another_site), "XYZ"),
        (altered, "document"),
        (PolicyDocument { signed: b"rubbish".to_vec(), proof: Vec::new() }, "cannot be read"),
        (document("range", 9, 0, r#"{"policy_minutes": 0}"#), "policy_minutes"),
        (document("good", 9, 0, "{}"), "came twice"),
        (document("bad/name", 9, 0, "{}"), "bad/name"),
    ] {
        let mut policy = open(&Arc::new(SimDisk::new()));
        let documents = [document("good", 1, 0, r#"{"policy_minutes": 5}"#), bad];
        let fault = policy.apply(&documents, &judge()).unwrap_err().to_string();
        assert!(fault.contains(word), "{fault}");
        assert_eq!(policy.settings().policy_minutes, None);
    }
}

#[test]
fn a_document_for_a_set_is_taken_with_the_proof() {
    let targets = TargetSet::new([5].into_iter().collect()).unwrap();
    let mut statement = statement("ours", 1, 0, Some(r#"{"policy_minutes": 5}"#));
    statement.scope = PolicyScope::Set(targets.digest());
    let mut document = signed(statement);
    targets.prove(DeviceId(5), &mut document.proof);
    let mut policy = open(&Arc::new(SimDisk::new()));
    policy.apply(&[document], &judge()).unwrap();
    assert_eq!(policy.settings().policy_minutes, Some(5));
}

#[test]
fn a_damaged_file_is_no_policy_and_a_failing_disk_leaves_the_old_one() {
    let disk = Arc::new(SimDisk::new());
    let mut policy = open(&disk);
    policy.apply(&[document("a", 1, 0, r#"{"policy_minutes": 5}"#)], &judge()).unwrap();
    disk.set_full(true);
    let fault = policy.apply(&[document("a", 2, 0, r#"{"policy_minutes": 9}"#)], &judge()).unwrap_err();
    assert!(matches!(fault, PolicyFault::Disk(WriteFault::Unchanged(_))));
    assert_eq!(policy.settings().policy_minutes, Some(5));
    disk.set_full(false);
    assert_eq!(open(&disk).settings().policy_minutes, Some(5));
    bgb_daemon::disk::replace_durably(&*disk, Path::new("/state/policy"), b"rubbish").unwrap();
    assert_eq!(open(&disk).settings().policy_minutes, None);
}

#[test]
fn a_crash_while_a_policy_is_applied_leaves_the_old_or_the_new_one() {
    for ops in 0..8 {
        for seed in 0..16 {
            let disk = Arc::new(SimDisk::new());
            let mut policy = open(&disk);
            disk.sync_dir(Path::new("/")).unwrap();
            policy.apply(&[document("a", 1, 0, r#"{"policy_minutes": 5}"#)], &judge()).unwrap();
            disk.fail_after_ops(ops);
            let done = policy.apply(&[document("a", 2, 0, r#"{"policy_minutes": 9}"#)], &judge());
            disk.crash(seed);
            let minutes = open(&disk).settings().policy_minutes;
            match done {
                Ok(_) => assert_eq!(minutes, Some(9)),
                Err(PolicyFault::Disk(WriteFault::Unchanged(_))) => assert_eq!(minutes, Some(5)),
                Err(_) => assert!(matches!(minutes, Some(5 | 9)), "{minutes:?}"),
            }
        }
    }
}
