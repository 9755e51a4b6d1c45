use super::*;
use crate::{Flags, Precision};
use octet_model::{InputKind, InputSite};

fn site(module: &str, dims: (usize, usize), role: Role, layer: Option<usize>, kind: InputKind) -> Site {
    let input = InputSite { layer, kind };
    let linear = LinearSite { module: module.into(), rows: dims.0, cols: dims.1, role, layer, input, transposed: false };
    Site { linear, dtype: Dtype::Bf16, bytes: (dims.0 * dims.1 * 2) as u64 }
}

/// Two blocks of a small model; the first has experts' router, the last a `down` whose inputs are no multiple of 128.
fn inventory(tied: bool) -> Inventory {
    let embedding = if tied { InputKind::Head } else { InputKind::Tokens };
    let mut sites = vec![site("model.embed_tokens", (1000, 256), Role::Embedding, None, embedding)];
    for layer in 0..2 {
        let path = |rest: &str| format!("model.layers.{layer}.{rest}");
        sites.extend([
            site(&path("self_attn.q_proj"), (256, 256), Role::Q, Some(layer), InputKind::Attention),
            site(&path("self_attn.o_proj"), (256, 256), Role::O, Some(layer), InputKind::AttentionOut),
            site(&path("mlp.gate"), (8, 256), Role::Router, Some(layer), InputKind::Mlp),
            site(&path("mlp.down_proj"), (256, 416), Role::Down, Some(layer), InputKind::MlpDown),
        ]);
    }
    if !tied {
        sites.push(site("lm_head", (1000, 256), Role::Head, None, InputKind::Head));
    }
    let other =
        |name: &str, redundant: Option<&'static str>| OtherTensor { name: name.into(), shape: vec![256], dtype: Dtype::Bf16, redundant };
    let norms = ["model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight", "model.norm.weight"];
    let mut others: Vec<_> = norms.iter().map(|name| other(name, None)).collect();
    if tied {
        others.insert(0, other("lm_head.weight", Some("the embedding it repeats serves as head")));
    }
    Inventory { sites, others }
}

fn flags(scheme: &str, portable: bool) -> Flags {
    Flags {
        scheme: scheme.parse().unwrap(),
        embedding: None,
        head: None,
        portable,
        solver: SolverChoice::Rtn { candidates: None },
        transform: None,
    }
}

fn plan(flags: &Flags, tied: bool) -> Plan {
    Plan::new(&Recipe::from_flags(flags, tied).unwrap(), &inventory(tied), false).unwrap()
}

fn planned(recipe: &str) -> Result<Plan, Error> {
    Plan::new(&Recipe::from_toml(recipe)?, &inventory(false), false)
}

#[test]
fn w4_with_its_own_embedding_and_head() {
    insta::assert_snapshot!(plan(&flags("w4a16", false), false), @r#"
    tensor                                 count  role       shape       stored  becomes                          MB            why
    model.embed_tokens                     1      embedding  1000 x 256  BF16    w8a16-pc-sym rtn, BF16 scales    0.51 -> 0.26
    model.layers.*.self_attn.q_proj        2      q          256 x 256   BF16    w4a16-g128-sym rtn, BF16 scales  0.26 -> 0.07
    model.layers.*.self_attn.o_proj        2      o          256 x 256   BF16    w4a16-g128-sym rtn, BF16 scales  0.26 -> 0.07
    model.layers.*.mlp.gate                2      router     8 x 256     BF16    BF16                             0.01 -> 0.01  it is a router: a small error would pick other experts
    model.layers.*.mlp.down_proj           2      down       256 x 416   BF16    w4a16-g128-sym rtn, BF16 scales  0.43 -> 0.11
    lm_head                                1      head       1000 x 256  BF16    w8a16-pc-sym rtn, BF16 scales    0.51 -> 0.26
    model.layers.*.input_layernorm.weight  2      other      256         BF16    BF16                             0.00 -> 0.00  not a weight matrix
    model.norm.weight                      1      other      256         BF16    BF16                             0.00 -> 0.00  not a weight matrix
    "#);
    insta::assert_snapshot!(plan(&flags("w4a16", false), false).forecast(2, None), @r#"
    weights   1.98 MB -> 0.77 MB (2.56x smaller)
    bits      4.140 a weight of the linears, 6.223 of everything
    memory    0.65 MB of buffers while quantizing
    "#);
}

#[test]
fn w8a8_tied() {
    insta::assert_snapshot!(plan(&flags("w8a8", false), true), @r#"
    tensor                                 count  role       shape       stored  becomes                       MB            why
    model.embed_tokens                     1      embedding  1000 x 256  BF16    w8a8-pc-sym rtn, BF16 scales  0.51 -> 0.26
    model.layers.*.self_attn.q_proj        2      q          256 x 256   BF16    w8a8-pc-sym rtn, BF16 scales  0.26 -> 0.13
    model.layers.*.self_attn.o_proj        2      o          256 x 256   BF16    w8a8-pc-sym rtn, BF16 scales  0.26 -> 0.13
    model.layers.*.mlp.gate                2      router     8 x 256     BF16    BF16                          0.01 -> 0.01  it is a router: a small error would pick other experts
    model.layers.*.mlp.down_proj           2      down       256 x 416   BF16    w8a8-pc-sym rtn, BF16 scales  0.43 -> 0.21
    lm_head.weight                         1      other      256         BF16    nothing                       0.00 -> 0.00  the embedding it repeats serves as head
    model.layers.*.input_layernorm.weight  2      other      256         BF16    BF16                          0.00 -> 0.00  not a weight matrix
    model.norm.weight                      1      other      256         BF16    BF16                          0.00 -> 0.00  not a weight matrix
    "#);
}

#[test]
fn portable_keeps_what_other_readers_cannot_take() {
    insta::assert_snapshot!(plan(&flags("w4a16", true), false), @r#"
    tensor                                 count  role       shape       stored  becomes                          MB            why
    model.embed_tokens                     1      embedding  1000 x 256  BF16    BF16                             0.51 -> 0.51  as the recipe says
    model.layers.*.self_attn.q_proj        2      q          256 x 256   BF16    w4a16-g128-sym rtn, BF16 scales  0.26 -> 0.07
    model.layers.*.self_attn.o_proj        2      o          256 x 256   BF16    w4a16-g128-sym rtn, BF16 scales  0.26 -> 0.07
    model.layers.*.mlp.gate                2      router     8 x 256     BF16    BF16                             0.01 -> 0.01  it is a router: a small error would pick other experts
    model.layers.*.mlp.down_proj           2      down       256 x 416   BF16    BF16                             0.43 -> 0.43  its 416 inputs are no multiple of the group of 128, which other readers need
    lm_head                                1      head       1000 x 256  BF16    BF16                             0.51 -> 0.51  as the recipe says
    model.layers.*.input_layernorm.weight  2      other      256         BF16    BF16                             0.00 -> 0.00  not a weight matrix
    model.norm.weight                      1      other      256         BF16    BF16                             0.00 -> 0.00  not a weight matrix
    "#);
}

#[test]
fn a_lookup_has_no_activations_but_a_tied_table_is_also_the_head() {
    let schemes = |tied| {
        let plan = plan(&flags("w8a8", false), tied);
        plan.quantized().filter(|(line, _)| ["embedding", "head"].contains(&line.role())).map(|(_, s)| s.short()).collect::<Vec<_>>()
    };
    assert_eq!(schemes(false), ["w8a16", "w8a8"]);
    assert_eq!(schemes(true), ["w8a8"]);
}

#[test]
fn strict_refuses_what_cannot_be_done_as_asked() {
    let recipe = Recipe::from_flags(&flags("w4a16", true), false).unwrap();
    insta::assert_snapshot!(Plan::new(&recipe, &inventory(false), true).unwrap_err(), @"2 tensors cannot take what was asked, for example model.layers.0.mlp.down_proj: its 416 inputs are no multiple of the group of 128, which other readers need; leave them out of the recipe or drop --strict");
    let router = Recipe::from_toml("[[step]]\naction='quantize'\ntargets=['linears','router']\nscheme='w8a16'").unwrap();
    insta::assert_snapshot!(Plan::new(&router, &inventory(false), true).unwrap_err(), @"2 tensors cannot take what was asked, for example model.layers.0.mlp.gate: it is a router: a small error would pick other experts; leave them out of the recipe or drop --strict");
    // A router that nothing targets is no failure.
    let usual = Recipe::from_flags(&flags("w8a16", false), false).unwrap();
    assert!(Plan::new(&usual, &inventory(false), true).is_ok());
}

#[test]
fn later_steps_decide_and_idle_ones_are_errors() {
    let step = |targets: &str, scheme: &str| format!("[[step]]\naction='quantize'\ntargets=[{targets}]\nscheme='{scheme}'\n");
    let plan = planned(&(step("'linears'", "w4a16") + &step("'down & layers:1'", "w8a16"))).unwrap();
    let bits = |name: &str| plan.quantized().find(|(line, _)| line.name == name).map(|(_, s)| s.weights.bits.get());
    assert_eq!((bits("model.layers.0.mlp.down_proj"), bits("model.layers.1.mlp.down_proj")), (Some(4), Some(8)));
    assert_eq!(bits("lm_head"), None);
    assert!(plan.kept_modules().any(|name| name == "lm_head"));

    insta::assert_snapshot!(planned(&(step("'q'", "w4a16") + &step("'linears'", "w8a16"))).unwrap_err(), @"step 1 of the recipe decides nothing: later steps claim every tensor it targets; remove it or move it behind them");
    insta::assert_snapshot!(planned(&step("'layers:2'", "w4a16")).unwrap_err(), @r#"step 1 of the recipe targets "layers:2", which matches nothing in this model; it has 2 layers and the roles embedding, q, o, router, down, head"#);
}

#[test]
fn paths_and_expressions_choose_modules() {
    let names = |target: &str| {
        let plan = planned(&format!("[[step]]\naction='quantize'\ntargets=[{target:?}]\nscheme='w8a16'")).unwrap();
        plan.quantized().map(|(line, _)| line.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names("model.layers.?.mlp.down_proj").len(), 2);
    assert_eq!(names("*.q_proj"), ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]);
    assert_eq!(names("re:layers\\.1\\.self_attn\\.(q|o)_proj$").len(), 2);
    assert_eq!(names("layers:0 & re:q_proj|down"), ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"]);
    assert_eq!(names("head"), ["lm_head"]);
}

#[test]
fn one_tensor_cannot_have_two_schemes() {
    let mut flags = flags("w4a16", false);
    flags.embedding = Some(Precision::Keep);
    flags.head = Some(Precision::Quantize("w8a16".parse().unwrap()));
    assert!(Recipe::from_flags(&flags, false).is_ok());
    insta::assert_snapshot!(Recipe::from_flags(&flags, true).unwrap_err(), @"the recipe makes no sense: this model's embedding and head are one tensor, so they cannot differ; give both the same scheme");
    flags.head = None;
    assert!(plan(&flags, true).quantized().all(|(line, _)| line.role() != "embedding"));
}

#[test]
fn the_digest_changes_with_the_plan_and_only_then() {
    let digest = |scheme: &str| plan(&flags(scheme, false), true).digest();
    assert_eq!(digest("w4a16"), digest("w4a16-g128-sym"));
    assert_ne!(digest("w4a16"), digest("w4a16-g64"));
    insta::assert_snapshot!(digest("w4a16").lines().take(5).collect::<Vec<_>>().join("\n"), @r#"
    octet plan 1
    portable false
    model.embed_tokens	1000x256	BF16	quantize w8a16-pc-sym scales BF16 rtn	258016
    model.layers.0.self_attn.q_proj	256x256	BF16	quantize w4a16-g128-sym scales BF16 rtn	33808
    model.layers.0.self_attn.o_proj	256x256	BF16	quantize w4a16-g128-sym scales BF16 rtn	33808
    "#);
}

#[test]
fn every_tensor_has_its_line_when_asked() {
    let plan = plan(&flags("w8a16", false), true);
    assert_eq!(plan.table(true).lines().count(), 1 + plan.lines().len());
    assert_eq!(plan.lines().len(), inventory(true).sites.len() + inventory(true).others.len());
}

#[test]
fn a_table_that_is_embedding_and_head_can_be_solved_instead_of_rounded() {
    let settled = |tied| {
        let modules = vec!["model.embed_tokens".to_string()];
        let table = crate::FusedGroup { name: "embedding".into(), modules, layer: None, kind: "embedding".into(), weights: 256_000 };
        Recipe::mixed(false).settled(&inventory(tied), &[(&table, "w8a16".parse().ok())]).unwrap()
    };
    let solver_of_table = |recipe: &Recipe| {
        let plan = Plan::new(recipe, &inventory(true), false).unwrap();
        plan.lines().iter().find(|line| line.name == "model.embed_tokens").unwrap().action.clone()
    };
    let gptq = SolverChoice::Gptq(crate::GptqSettings::USUAL);
    let rounded = settled(true);
    let solved = rounded.solving_table(&inventory(true), gptq).unwrap();
    assert_ne!(solver_of_table(&rounded), solver_of_table(&solved));
    assert!(matches!(solver_of_table(&solved), Action::Quantize { solver, .. } if solver == gptq));
    assert_eq!(solved.solving_table(&inventory(true), gptq), None, "it is already");
    let apart = settled(false);
    assert_eq!(apart.solving_table(&inventory(false), gptq), None, "a table that is only looked up stays rounded");
}
