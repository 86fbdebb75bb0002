use std::time::{Duration, Instant};

use bgb_protocol::file::results::{DeviceWord, ResultRow};
use bgb_protocol::file::{BLOCK_HEAD_BYTES, Epoch, FileBuilder, HEADER_BYTES, Header};
use bgb_protocol::ids::{ServerId, TaskId, UnixMillis};
use bgb_protocol::result::{ResultStatement, SignedResult};
use bgb_protocol::signature::DeviceKey;
use bgb_protocol::state::TaskState;

use super::*;

struct OneKey(DeviceId, DeviceKey);

impl KeyBook for OneKey {
    fn public_key(&mut self, device: DeviceId, key: KeyId) -> Result<Option<Vec<u8>>, SiteError> {
        Ok((device == self.0 && key == self.1.id()).then(|| self.1.public()))
    }
}

fn site() -> SiteCode {
    "LAB".parse().unwrap()
}

fn block(number: u32, rows: &[ResultRow]) -> RawBlock {
    let mut builder = FileBuilder::new();
    rows.iter().for_each(|row| builder.push(row));
    let header = Header {
        kind: FileKind::Results,
        site: site(),
        server: ServerId(1),
        epoch: Epoch { counter: 1, nonce: 1 },
        sequence: 1,
        time: UnixMillis(1),
        rows: 0,
        blocks: 0,
    };
    let bytes = &builder.finish(header).1[HEADER_BYTES..];
    let head = BlockHead::decode(&bytes[..BLOCK_HEAD_BYTES], 0).unwrap();
    RawBlock { head, first_row: u64::from(number), bytes: bytes[..head.total_bytes()].to_vec() }
}

fn hint(device: u32) -> ResultRow {
    let task = TaskId::from_bytes([1; 16]);
    ResultRow { task, device: DeviceId(device), heard: UnixMillis(5), word: DeviceWord::Running }
}

fn signed(key: &DeviceKey, change: impl FnOnce(&mut ResultStatement)) -> ResultRow {
    let mut statement = ResultStatement {
        site: site(),
        task: TaskId::from_bytes([1; 16]),
        device: DeviceId(7),
        state: TaskState::Succeeded,
        refusal: None,
        code: 0,
        started: UnixMillis(1),
        finished: UnixMillis(2),
        output_digest: [0; 32],
    };
    change(&mut statement);
    let signed = SignedResult::sign(statement, Vec::new(), key).unwrap();
    ResultRow { word: DeviceWord::Final(Box::new(signed)), ..hint(7) }
}

fn take(verifier: &mut Verifier) -> CheckedBlock {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(block) = verifier.take() {
            return block.unwrap();
        }
        assert!(Instant::now() < deadline, "no block came");
        std::thread::yield_now();
    }
}

fn results(block: &CheckedBlock) -> &VecDeque<(u32, VerifiedRow)> {
    let GoodRows::Results(rows) = &block.good else { panic!("a block of results") };
    rows
}

#[test]
fn a_statement_must_be_of_this_site_this_device_and_this_task_and_signed_by_its_key() {
    let (key, _) = DeviceKey::generate().unwrap();
    let (stranger, _) = DeviceKey::generate().unwrap();
    let rows = [
        signed(&key, |_| {}),
        signed(&stranger, |_| {}),
        signed(&key, |statement| statement.site = "XYZ".parse().unwrap()),
        signed(&key, |statement| statement.device = DeviceId(8)),
        signed(&key, |statement| statement.task = TaskId::from_bytes([2; 16])),
        signed(&key, |statement| statement.state = TaskState::Running),
        signed(&key, |statement| statement.finished = UnixMillis(u64::MAX)),
    ];
    let mut verifier = Verifier::inline(Box::new(OneKey(DeviceId(7), key)));
    verifier.submit(site(), FileKind::Results, block(0, &rows));
    let checked = take(&mut verifier);
    assert_eq!(results(&checked).len(), 1);
    assert_eq!(results(&checked)[0].0, 0);
    let forged = checked.bad.iter().filter(|bad| matches!(bad.fault, RowFault::Forged(DeviceId(7), _)));
    assert_eq!((forged.count(), checked.bad.len()), (4, 6));
}

#[test]
fn a_key_of_another_device_is_none_of_the_rows_device() {
    let (key, _) = DeviceKey::generate().unwrap();
    let row = signed(&key, |_| {});
    let mut verifier = Verifier::inline(Box::new(OneKey(DeviceId(9), key)));
    verifier.submit(site(), FileKind::Results, block(0, &[row]));
    let checked = take(&mut verifier);
    let RowFault::Forged(_, why) = &checked.bad[0].fault else { panic!("forged") };
    assert!(why.starts_with("no certificate of the device has the key"), "{why}");
}

#[test]
fn blocks_come_out_of_the_pool_in_the_order_in_which_they_went_in() {
    let (key, _) = DeviceKey::generate().unwrap();
    let slow: Vec<_> = (0..50).map(|_| signed(&key, |_| {})).collect();
    let key = Arc::new(parking_lot::Mutex::new(Some(key)));
    let open: OpenKeyBook = Arc::new(move || {
        struct Shared(Vec<u8>);
        impl KeyBook for Shared {
            fn public_key(&mut self, _: DeviceId, _: KeyId) -> Result<Option<Vec<u8>>, SiteError> {
                Ok(Some(self.0.clone()))
            }
        }
        let public = key.lock().as_ref().map(DeviceKey::public).unwrap_or_default();
        Ok(Box::new(Shared(public)))
    });
    let (woken, wakes) = bounded(1_000);
    let wake: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        let _ = woken.try_send(());
    });
    let mut verifier = Verifier::pool(4, &open, &wake).unwrap();
    for number in 0..BLOCKS_AHEAD_MAX as u32 {
        assert!(verifier.has_room());
        // Every fourth takes long.
        let rows = if number % 4 == 0 { slow.clone() } else { vec![hint(number)] };
        verifier.submit(site(), FileKind::Results, block(number, &rows));
    }
    assert!(!verifier.has_room());
    for number in 0..BLOCKS_AHEAD_MAX as u64 {
        assert_eq!(take(&mut verifier).first_row, number);
    }
    assert_eq!(verifier.in_flight(), 0);
    assert!(!wakes.is_empty());
}

#[test]
fn a_check_that_panics_makes_its_block_a_damaged_one_and_the_next_is_checked() {
    struct Panics;
    impl KeyBook for Panics {
        fn public_key(&mut self, _: DeviceId, _: KeyId) -> Result<Option<Vec<u8>>, SiteError> {
            panic!("a key that nobody foresaw")
        }
    }
    let (key, _) = DeviceKey::generate().unwrap();
    let open: OpenKeyBook = Arc::new(|| Ok(Box::new(Panics)));
    let mut verifier = Verifier::pool(1, &open, &(Arc::new(|| {}) as Arc<dyn Fn() + Send + Sync>)).unwrap();
    let block_of_one = block(0, &[signed(&key, |_| {})]);
    let bytes = block_of_one.bytes.clone();
    verifier.submit(site(), FileKind::Results, block_of_one);
    verifier.submit(site(), FileKind::Results, block(1, &[hint(1)]));
    let damaged = take(&mut verifier).damaged.unwrap();
    assert_eq!((damaged.bytes, damaged.rows_lost), (bytes, 1));
    assert_eq!(damaged.why, "block 0 cannot be checked: a key that nobody foresaw");
    assert_eq!(results(&take(&mut verifier)).len(), 1);
}

#[test]
fn blocks_of_a_file_that_was_given_up_never_come_out() {
    let open: OpenKeyBook = Arc::new(|| Err(SiteError::Busy));
    let mut verifier = Verifier::pool(2, &open, &(Arc::new(|| {}) as Arc<dyn Fn() + Send + Sync>)).unwrap();
    verifier.submit(site(), FileKind::Results, block(1, &[hint(1)]));
    verifier.forget();
    assert_eq!(verifier.in_flight(), 0);
    verifier.submit(site(), FileKind::Results, block(2, &[hint(2)]));
    let deadline = Instant::now() + Duration::from_secs(20);
    let outcome = loop {
        match verifier.take() {
            Some(outcome) => break outcome,
            None => assert!(Instant::now() < deadline, "no block came"),
        }
    };
    assert!(matches!(outcome, Err(SiteError::Busy)), "the keys cannot be read, and that is said");
}

#[test]
fn what_a_server_says_is_held_to_its_limits() {
    use bgb_protocol::status::StatusId;

    let long =
        StatusMessage { text: "x".repeat(3_000), ..StatusId::ServerStarted.message(UnixMillis(1), "", "") };
    assert!(rows::check_status(long).is_err());
    let about =
        StatusMessage { about: "x".repeat(300), ..StatusId::ServerStarted.message(UnixMillis(1), "", "") };
    assert!(rows::check_status(about).is_err());
    assert!(
        rows::check_status(StatusId::ServerStarted.message(UnixMillis(1), "server 1", "listens")).is_ok()
    );
}
