//! Rotations of a linear's inputs at run time: which ones a config names, and where they stand among the nodes.
//!
//! In quantization_config they stand as compressed-tensors' transforms do (`transform_config`, type `hadamard`, location `input`), so
//! that a reader that knows no transforms can tell that it cannot run the model.

use crate::{
    error::{ConfigError, LoadError},
    graph::{Node, PlainNode},
    spec::ArchSpec,
};
use octet_kernels::EIGHT;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The `transform_config` that names `modules`.
pub fn transform_config(modules: &BTreeSet<String>) -> Value {
    if modules.is_empty() {
        return json!({});
    }
    let apply = json!([{"targets": modules, "location": "input", "inverse": false, "ignore": []}]);
    json!({"config_groups": {"inputs": {"type": "hadamard", "apply": apply, "randomize": false, "requires_grad": false, "head_dim": EIGHT}}})
}

/// The modules that a config says have their inputs turned.
pub(crate) fn modules(config: &Value) -> Result<BTreeSet<String>, ConfigError> {
    let key = "quantization_config.transform_config";
    let Some(transforms) = config.pointer("/quantization_config/transform_config").filter(|v| !v.is_null() && **v != json!({})) else {
        return Ok(BTreeSet::new());
    };
    let named = transforms.pointer("/config_groups/inputs/apply/0/targets").and_then(Value::as_array);
    let modules: BTreeSet<String> = named.into_iter().flatten().filter_map(Value::as_str).map(String::from).collect();
    if transform_config(&modules) == *transforms {
        return Ok(modules);
    }
    let expected = "Hadamard rotations of eight inputs each, as octet writes them".into();
    Err(ConfigError::Value { key: key.into(), expected, found: "other transforms".into() })
}

impl ArchSpec {
    /// Modules whose inputs are turned at run time.
    pub fn turned_inputs(&self) -> &BTreeSet<String> {
        &self.turned
    }

    /// The same model with the inputs of `modules` turned.
    pub fn with_turned_inputs(&self, modules: BTreeSet<String>) -> Self {
        Self { turned: modules, ..self.clone() }
    }

    /// Refuses names of modules whose inputs cannot be turned.
    pub(crate) fn check_turned(&self) -> Result<(), LoadError> {
        let graph = self.graph();
        let known: BTreeSet<&str> = graph
            .blocks
            .iter()
            .flatten()
            .filter_map(|node| if let Node::Linears(group) = node { Some(&group.linears) } else { None })
            .flatten()
            .filter(|linear| linear.site.cols.is_multiple_of(EIGHT))
            .map(|linear| linear.site.module.as_str())
            .collect();
        let unknown = self.turned.iter().find(|module| !known.contains(module.as_str()));
        unknown.map_or(Ok(()), |module| Err(LoadError::Turned { module: module.clone() }))
    }

    /// The nodes of a block with the turns of its inputs.
    pub(crate) fn turned_nodes(&self, nodes: Vec<PlainNode>) -> Vec<PlainNode> {
        let turned = |node: &PlainNode| match node {
            Node::Linears(group) if group.linears.iter().any(|l| self.turned.contains(&l.site.module)) => Some(Node::Turn(group.from)),
            _ => None,
        };
        nodes.into_iter().flat_map(|node| turned(&node).into_iter().chain([node])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_say_which_inputs_turn_and_others_are_refused() {
        let config = |transforms: Value| json!({"quantization_config": {"transform_config": transforms}});
        assert_eq!(modules(&json!({})).unwrap(), BTreeSet::new());
        assert_eq!(modules(&config(json!({}))).unwrap(), BTreeSet::new());
        let named: BTreeSet<String> = ["a.down_proj".into(), "b.o_proj".into()].into();
        assert_eq!(modules(&config(transform_config(&named))).unwrap(), named);
        let mut other = transform_config(&named);
        other["config_groups"]["inputs"]["head_dim"] = 128.into();
        let said = modules(&config(other)).unwrap_err().to_string();
        assert!(said.contains("transform_config") && said.contains("Hadamard rotations of eight"), "{said}");
    }
}
