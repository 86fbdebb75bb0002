use super::*;
use bgb_protocol::head::SignedHead;

#[test]
fn a_head_names_what_was_drawn_before_it_and_replaces_the_one_before() {
    let mut site = site_with(1);
    site.start(Action::Ping);
    let sign_head = |statement| SignedHead::sign(statement, &key());
    let first = site.store.write_head(NOW, sign_head).unwrap();
    let second = site.store.write_head(NOW.plus(60_000), sign_head).unwrap();
    assert_eq!((first.statement().sequence, second.statement().sequence), (2, 3));
    assert_eq!(second.statement().generation, site.store.generation());
    let heads: Vec<_> = site.queue().into_iter().filter(|item| item.kind() == "head").collect();
    assert_eq!(heads, [QueueItem::Head { signed: second.bytes().to_vec() }]);
}

#[test]
fn sequences_rise_and_are_not_used_again_when_the_queue_is_empty() {
    let mut site = site_with(2);
    site.store.block_device(DeviceId(0), "anna", NOW).unwrap();
    site.store.unblock_device(DeviceId(0), "anna", NOW).unwrap();
    site.store.sweep_queue(NOW.plus(1_000 * HOUR_MS)).unwrap();
    assert_eq!((site.queue().len(), site.store.read().queue_sequence().unwrap()), (0, 2));
    site.store.block_device(DeviceId(1), "anna", NOW).unwrap();
    let reader = crate::QueueReader::open(&site.path).unwrap();
    assert_eq!(reader.rows_after(2, ServerId(1), NOW, 10).unwrap()[0].sequence, 3);
}
