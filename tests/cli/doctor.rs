//! `tunesmith doctor`.

use crate::context::{TestContext, expect_status};

#[test]
fn the_machine_is_described_for_people_and_for_programs() {
    let context = TestContext::new();
    let outcome = context.run(&["doctor", "--threads", "1"]);
    expect_status(&outcome, 0);
    for line in ["threads           1", "matrix library", "memory", "disk", "gpu"] {
        assert!(outcome.stdout.contains(line), "{line}:\n{}", outcome.stdout);
    }
    let outcome = context.run(&["doctor", "--json", "-"]);
    expect_status(&outcome, 0);
    let machine: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(machine["memory_bytes"].as_u64().unwrap() > 1 << 28);
    assert_eq!(machine["variables"]["HF_HUB_OFFLINE"], "1");
}
