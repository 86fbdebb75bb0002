//! No page reads a large table from end to end: SQLite's plans are read for that.

use super::*;
use crate::queue_reader::ROWS_AFTER;
use crate::store::devices::{
    DEVICE_BY_EXACT_NAME, DEVICE_BY_GUID, DEVICE_BY_NUMBER, DEVICES_ALL, DEVICES_BY_NAME,
    DEVICES_BY_PRESENCE, ONLINE, device_sql,
};
use crate::store::roads::ROADS_ONLINE;
use crate::store::status::{STATUS_ALL, STATUS_OF_BOTH, STATUS_OF_COMPONENT, STATUS_OF_SEVERITY};
use crate::store::targets::INACTIVE;
use crate::store::tasks::{RESULTS_OF_STATE, RESULTS_PAGE, RESULTS_SUCCEEDED, TASKS_PAGE};

fn plan(site: &Site, sql: &str) -> Vec<String> {
    let mut statement = site.store.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    for index in 1..=statement.parameter_count() {
        statement.raw_bind_parameter(index, 1).unwrap();
    }
    let (mut rows, mut steps) = (statement.raw_query(), Vec::new());
    while let Some(row) = rows.next().unwrap() {
        steps.push(row.get(3).unwrap());
    }
    steps
}

#[test]
fn pages_search_by_an_index_and_sort_nothing() {
    let site = site();
    let devices = [
        DEVICES_ALL,
        DEVICES_BY_PRESENCE,
        DEVICES_BY_NAME,
        DEVICE_BY_NUMBER,
        DEVICE_BY_EXACT_NAME,
        DEVICE_BY_GUID,
    ]
    .map(device_sql);
    let others = [
        ONLINE,
        INACTIVE,
        TASKS_PAGE,
        RESULTS_PAGE,
        RESULTS_SUCCEEDED,
        RESULTS_OF_STATE,
        STATUS_ALL,
        STATUS_OF_COMPONENT,
        STATUS_OF_SEVERITY,
        STATUS_OF_BOTH,
        ROWS_AFTER,
        ROADS_ONLINE,
        super::super::presence::DEVICES_OF_SERVER,
        super::super::collections::COLLECTIONS,
    ];
    for sql in devices.iter().map(String::as_str).chain(others) {
        let plan = plan(&site, sql);
        assert!(!plan.is_empty(), "{sql}");
        for step in plan {
            let whole = step.contains("SCAN") && !step.contains("INDEX device_inactive");
            assert!(!whole && !step.contains("TEMP B-TREE"), "{step}: {sql}");
        }
    }
}

#[test]
fn a_plan_that_reads_a_whole_table_is_noticed() {
    let site = site();
    assert!(plan(&site, "SELECT number FROM device WHERE hostname = ?1")[0].contains("SCAN"));
}
