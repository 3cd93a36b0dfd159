//! `tunesmith schema`.

use serde_json::Value;

use crate::context::{TestContext, expect_status};

#[test]
fn the_schema_is_json_and_names_every_table_of_a_recipe() {
    let outcome = TestContext::new().run(&["schema"]);
    expect_status(&outcome, 0);
    let schema: Value = serde_json::from_str(&outcome.stdout).unwrap();
    let tables: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
    insta::assert_snapshot!(format!("{tables:?}"), @r#"["base_model", "output_dir", "seed", "precision", "deterministic", "quantize_base", "rope_scaling", "dataset", "validation", "batch", "adapter", "objective", "optimizer", "schedule", "train", "checkpoint", "evaluate"]"#);
    assert_eq!(schema["additionalProperties"], Value::Bool(false));
    assert_eq!(schema["required"], serde_json::json!(["base_model", "output_dir", "dataset"]));
}
