//! What `-h` says: names and flags are meant to stay stable, so a change of theirs shows here.

use crate::sandbox::Sandbox;

fn help(args: &str) -> String {
    Sandbox::empty().octet(args).done().stdout
}

#[test]
fn the_commands() {
    insta::assert_snapshot!(help("-h"), @r###"
Compress a language model, judge it against the original on this machine, and run it

Usage: octet [OPTIONS] <COMMAND>

Commands:
  quantize     Compress a model, re-open what was written, judge it against the original
  run          Generate text (interactive without a prompt)
  eval         Perplexity with its interval; against a base also KL divergence, agreement and the paired ratio
  bench        Prefill and decode speed, load time, memory, and their share of this machine's limits
  inspect      Architecture, tensors, bits per weight, size and memory forecast of a checkpoint
  export       Write a model in another format (GGUF), re-open it, judge it against the model it came from
  logits       Raw logits for given token ids, to hold octet against another implementation
  compare      Both models on the same prompts: where their texts part, divergence token by token
  verify       Judge a checkpoint that anyone made, or check that a folder holds what its receipt says
  reproduce    Quantize again as a receipt says and compare every byte
  keygen       Make a key pair that signs receipts
  score        The Trinity Score of reports, input by input; several are ranked
  report       The page of a report: verdict, gates, plots, texts
  rollback     Go back to the variant that was in use before, or to the original
  schema       What agents may call, as JSON Schema
  tool         Call a tool with JSON in and out
  doctor       What this CPU can do, which kernels run, measured limits
  completions  Print a completion script for a shell
  help         Print this message or the help of the given subcommand(s)

Options:
      --threads <N>  Threads to compute with [default: the physical cores this process may use]
      --json         Print one JSON document on stdout; progress goes to stderr
  -v, --verbose...   Say more (-v: steps, -vv: details) on stderr
  -h, --help         Print help (see more with '--help')
  -V, --version      Print version

Examples:
  octet quantize pocket                      compress and judge the built-in model
  octet quantize ./Qwen3-0.6B --scheme w4a16-g32
  octet run ./Qwen3-0.6B-w8a16 "The capital of France is"
  octet eval ./Qwen3-0.6B-w8a16 --base ./Qwen3-0.6B

Exit codes: 0 done or accepted, 1 error, 2 wrong usage, 3 refused or undecided, 130 interrupted.
"###);
}

#[test]
fn the_flags_of_quantize() {
    insta::assert_snapshot!(help("quantize -h"), @r###"
Compress a model, re-open what was written, judge it against the original

Usage: octet quantize [OPTIONS] <MODEL> [OUT] [MORE]...

Arguments:
  <MODEL>    A checkpoint folder, `pocket` (built in), or org/name from the local Hugging Face cache
  [OUT]      Where to write [default: ./<model>-<scheme or preset>]
  [MORE]...  Several checkpoints of one training run, oldest first: all are quantized and compared; OUT comes last

Options:
      --scheme <S>                  Scheme, or several with commas: w<bits>a<16|8>[-g<size>|-pc][-sym|-asym][-at|-ag<size>|-o<limit>]
      --preset <PRESET>             Named choice of schemes and methods [default: mixed; w8a16 where nothing is judged or measured] [possible values: mixed, w8, w8a8, smooth-w8a8, turned-w8a8, w4, attention8-mlp4, fast]
      --bits-per-weight <B>         Mixed precision within so many bits a weight, embedding and head included; several with commas
      --bits <N>                    Bits a weight, 2 to 8 (with --group-size: the same as a scheme)
      --group-size <N>              Weights that share a scale: 32, 64, 128 or 256
      --recipe <FILE>               A recipe file (TOML) of ordered steps
      --method <M>                  What chooses the codes of the linears [default: rtn; presets and recipes say it themselves] [possible values: rtn, gptq, awq, smoothquant, llm-int8]
      --smooth-alpha <A>            Strength of SmoothQuant, 0 to 1, or `search`: for every input the one that leaves the least error [default: search]
      --distill [<STEPS>]           Let the quantized model learn from the original's logits on the calibration text, in so many steps [default: by the model's size]
      --effort <E>                  Minutes for quality, with the presets mixed and w4: fast rounds, best distils as --distill does [default: normal, GPTQ] [possible values: fast, normal, best]
      --calibration <FILE>...       Calibration text: plain text, .jsonl or .bin token ids [default: built-in text]
      --calibration-samples <N>     Windows drawn from the calibration text [default: 64, or more where the model is wide or small]
      --calibration-length <N>      Tokens of a calibration window [default: 512]
      --one-pass                    Observe all inputs of a block at once, before any of its linears is quantized: faster, a little worse
      --memory-budget <SIZE>        Memory to take, such as 1.5GB; hidden states go to disk where they would not fit [default: half of what is free]
      --log-jsonl <FILE>            Append a line of JSON for every finished tensor to this file
      --restart                     Begin anew where unfinished work of an earlier run would be resumed
      --no-calibration              Do not measure activations, even when there is calibration text
      --fast                        Quick: try few scales a group and measure no activations (fidelity a little lower, several times as fast)
      --portable                    Keep embedding and head in 16 bits, so that transformers and vLLM load the folder unchanged
      --dry-run                     Print the plan with forecast size, memory and time; write nothing
      --no-judge                    Write without judging: the folder then has no validation_report.json
      --prepack                     Also store the weights as this version's kernels execute them (model.packed): opening is a map and no copy
      --no-receipt                  Write no receipt.json: hashing what goes in and out takes longer than a --fast run itself
      --force                       Replace an existing output folder
      --sign <KEY>                  Sign the receipt with this secret key (see octet keygen)
      --strict                      Turn whatever the plan would note and skip into an error, and the fidelity gate into a blocking one
      --no-ladder                   Stop at the first refusal instead of trying better solvers, smaller groups, more bits, more calibration
      --max-minutes <M>             Begin no further attempt after this many minutes
      --target-score <SCORE>        Try INT8 weight-only, INT8 dynamic, other groups, then mixed, until one is accepted with this Trinity Score
      --checkpoint <MODEL>...       Other checkpoints of the same training run, to be quantized and compared with this one
      --auto-score <SCORE>          Least Trinity Score to take what passed without a question [default: 90, or --target-score if that is less]
      --auto-risk <RISK>            Most risk to take what passed without a question [default: 10]
  -y, --yes                         Take whatever every gate passed: answers yes before it is asked
      --no                          Answer no: what waits for an answer is thrown away
      --graph <FILE>                Draw the states the run went through: .svg, or Mermaid text (.mmd)
      --eval-text <FILE>...         Texts to judge on, each by itself and all together: plain text, .jsonl or .bin token ids [default: built-in texts]
      --text-field <NAME>           Field of a .jsonl line that holds the text [default: text, else messages]
      --eval-tokens <N>             Judge on at most this many tokens [default: 102400]
      --context <N>                 Window length in tokens [default: 2048, or less where the model or 100 windows of the text ask for it]
      --seed <N>                    Seed of everything drawn at random [default: 0]
      --max-ppl-increase <PERCENT>  Gate: largest accepted perplexity increase in percent (upper end of the 95 % interval) [default: 2]
      --whole-text                  Judge quality on all of the text even where half of it decides
      --min-speedup <RATIO>         Gate: smallest accepted decode speed-up over 16 bits where memory is the bound [default: 1.5]
      --max-size <SIZE>             Gate: largest accepted folder, such as 100MB; mixed precision is allocated to fit
      --tasks <FILE>                Gate: questions both models answer, JSON lines with "prompt", "answer" and for multiple choice "choices"; `pocket` for the built-in ones
      --max-task-drop <POINTS>      Gate: largest accepted drop of task accuracy in points (upper end of the 95 % interval) [default: 2]
      --health-prompts <N>          Prompts that both models continue by 256 tokens, greedily and sampled, to compare the health of their texts [default: 32]
      --reference-cache <DIR>       Folder that keeps what an original makes of a text, so that it runs once for many variants; `off` keeps nothing [default: octet in the user's cache folder]
      --threads <N>                 Threads to compute with [default: the physical cores this process may use]
      --json                        Print one JSON document on stdout; progress goes to stderr
  -v, --verbose...                  Say more (-v: steps, -vv: details) on stderr
  -h, --help                        Print help (see more with '--help')
  -V, --version                     Print version

Examples:
  octet quantize pocket
  octet quantize pocket --scheme w8a16,w4a16-g32     several schemes, compared
  octet quantize ./model ./out --scheme w4a16-g64-asym --calibration notes.txt --eval-text wiki.test.raw
  octet quantize ./model --bits-per-weight 4.5       mixed precision within a budget (or --max-size 100MB)
  octet quantize ./model --dry-run                   the plan, with forecast size, memory and time
  octet quantize ./model --yes                       in a script: what every gate passed is taken, nothing is asked
  octet quantize ./model --portable                  embedding and head stay 16-bit: loads in transformers and vLLM
"###);
}

#[test]
fn every_command_has_help_and_a_version() {
    for command in ["quantize", "run", "eval", "bench", "inspect", "logits", "doctor", "completions"] {
        let text = help(&format!("{command} --help"));
        assert!(text.contains("Usage: octet") && text.contains("--json") && text.contains("--threads"), "{command}: {text}");
    }
    assert!(help("--version").starts_with("octet 0."));
}
