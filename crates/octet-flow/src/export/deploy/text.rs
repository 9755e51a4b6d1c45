//! The files of a hand-over.

use super::{
    Serves,
    check::{Checked, Kind, WAYS},
};
use std::fmt::Write;

/// Names and contents of the files that start servers.
pub(super) fn files(name: &str, serves: Serves, weights: &str, context: usize) -> Vec<(&'static str, String)> {
    match serves {
        Serves::Checkpoint { .. } => vec![("ray_serve.yaml", ray(name, context)), ("kserve.yaml", kserve(name, context))],
        Serves::Gguf => vec![("Modelfile", format!("FROM ../{weights}\nPARAMETER num_ctx {context}\n"))],
        Serves::Mlx | Serves::Onnx | Serves::Nothing => vec![],
    }
}

/// A server, how it is started on the weights, and what is known of that.
struct Server {
    name: &'static str,
    command: String,
    known: &'static str,
}

/// What is said of servers whose commands were run and whose answers were held against octet's (`scripts/interop/check_deploy.py`).
const STARTED: &str = "started so, its answers held against octet's";
const UNVERIFIED: &str = "**unverified**";

/// Servers of the weights.
fn servers(name: &str, serves: Serves, weights: &str, context: usize) -> Vec<Server> {
    let server = |name, known, command| Server { name, command, known };
    match serves {
        Serves::Checkpoint { flags } => {
            let vllm = format!("vllm serve {weights} --served-model-name {name} --max-model-len {context} --tensor-parallel-size 1{flags}");
            let sglang = format!(
                "python -m sglang.launch_server --model-path {weights} --served-model-name {name} --context-length {context} --tp 1"
            );
            vec![
                server("vLLM", UNVERIFIED, vllm),
                server("SGLang", UNVERIFIED, sglang),
                server("Ray Serve LLM", UNVERIFIED, "serve run ray_serve.yaml".into()),
                server("KServe", UNVERIFIED, "kubectl apply -f kserve.yaml".into()),
            ]
        }
        Serves::Gguf => vec![
            server("llama.cpp", STARTED, format!("llama-server -m ../{weights} -c {context}")),
            server("ollama", UNVERIFIED, format!("ollama create {name} -f Modelfile && ollama run {name}")),
        ],
        Serves::Mlx => vec![server("mlx-lm", STARTED, format!("mlx_lm.server --model {weights}"))],
        Serves::Onnx => vec![server("onnxruntime", "executed so (docs/export.md)", format!("InferenceSession(\"{weights}/model.onnx\")"))],
        Serves::Nothing => vec![],
    }
}

/// The page: commands, the cut among servers, sizes.
pub(super) fn page(name: &str, serves: Serves, weights: &str, context: usize, checked: &Checked) -> String {
    let mut text = format!("# Handing {name} over\n\n");
    let servers = servers(name, serves, weights, context);
    if servers.is_empty() {
        text.push_str("No server loads this format; export to compressed-tensors, gptq, awq or gguf.\n");
    } else {
        text.push_str("| server | command | |\n|---|---|---|\n");
        servers.iter().for_each(|server| text.push_str(&format!("| {} | `{}` | {} |\n", server.name, server.command, server.known)));
    }
    let possible = if let Serves::Checkpoint { .. } = serves { checked.possible() } else { vec![] };
    if let Serves::Checkpoint { .. } = serves {
        text.push_str("\nThe path of the folder in `ray_serve.yaml` and the claim in `kserve.yaml` are yours to fill in.\n");
        text.push_str(&cut(&possible, checked));
    }
    text.push_str("\n## Size\n\n| servers | weights each, MB | keys and values a token each, kB (16 bits) | all, with one sequence of the whole context, MB each |\n");
    text.push_str("|---|---|---|---|\n");
    for ways in std::iter::once(1).chain(possible) {
        let (weights, kv) = (checked.share(ways) as f64, checked.kv_share(ways) as f64);
        let _ = writeln!(text, "| {ways} | {:.1} | {:.2} | {:.1} |", weights / 1e6, kv / 1e3, (weights + kv * context as f64) / 1e6);
    }
    text
}

/// Into how many parts every linear can be cut, and whether what servers fuse is alike.
fn cut(possible: &[usize], checked: &Checked) -> String {
    let list: Vec<String> = possible.iter().map(usize::to_string).collect();
    let mut text = format!(
        "\n## Cutting it among servers\n\nTensor parallelism that fits every linear: {}.\n\n",
        if list.is_empty() { "none of 2 to 16 ways".into() } else { format!("{} ways", list.join(", ")) }
    );
    text.push_str("| linear | outputs x inputs | cut by | ways | why not others |\n|---|---|---|---|---|\n");
    checked.kinds.iter().for_each(|kind| text.push_str(&row(kind)));
    text.push_str("\n## Precision inside fused matrices\n\n");
    match &checked.uneven[..] {
        [] => text.push_str("Queries, keys and values share one representation in every layer, and so do gate and up.\n"),
        uneven => {
            text.push_str("Servers that fuse these cannot load the folder; quantize with one scheme for each group:\n\n");
            uneven.iter().for_each(|one| text.push_str(&format!("- {one}\n")));
        }
    }
    text
}

fn row(kind: &Kind) -> String {
    let fine: Vec<String> = kind.ways.iter().filter(|(_, why)| why.is_none()).map(|(ways, _)| ways.to_string()).collect();
    let why = kind.ways.iter().find_map(|(ways, why)| why.as_ref().map(|why| format!("{ways}: {why}"))).unwrap_or_default();
    let fine = if fine.len() == WAYS.count() { "all".into() } else { fine.join(", ") };
    let [rows, cols] = kind.shape;
    format!("| {} | {rows} x {cols} | {} | {fine} | {why} |\n", kind.name, if kind.by_outputs { "outputs" } else { "inputs" })
}

fn ray(name: &str, context: usize) -> String {
    format!(
        "applications:
- name: llm
  route_prefix: /
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config:
        model_id: {name}
        model_source: /path/to/this/folder
      engine_kwargs:
        tensor_parallel_size: 1
        max_model_len: {context}
      deployment_config:
        autoscaling_config:
          min_replicas: 1
          max_replicas: 1
"
    )
}

fn kserve(name: &str, context: usize) -> String {
    format!(
        "apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    model:
      modelFormat:
        name: huggingface
      args:
      - --model_name={name}
      - --max-model-len={context}
      - --tensor-parallel-size=1
      storageUri: pvc://models/{name}
      resources:
        limits:
          nvidia.com/gpu: \"1\"
"
    )
}
