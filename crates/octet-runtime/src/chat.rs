//! Chat templates: a conversation becomes the text a model was trained on (Jinja, as transformers renders it).

use crate::{Error, Result, calendar, settings::TokenizerConfig};
use minijinja::{
    Environment, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use octet_formats::Folder;
use serde::{Deserialize, Serialize};
use std::{fmt, sync::Arc};

const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template with the tokens it may name; cloning shares it.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// The template of `folder`: chat_template.jinja, else `chat_template` of tokenizer_config.json (a text, or a list of
    /// named templates of which `default` is taken); `None` when the model has none.
    ///
    /// # Errors
    /// If there is a template that cannot be compiled.
    pub fn open(folder: &Folder) -> Result<Option<Self>> {
        let config = TokenizerConfig::open(folder)?;
        let file = "chat_template.jinja";
        let source = match folder.read(file)? {
            Some(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => Some(text.to_string()),
                Err(e) => return Err(Error::BadFile { folder: folder.name().into(), file, what: e.to_string() }),
            },
            None => config.chat_template.as_ref().map(pick).transpose()?,
        };
        source.map(|source| Self::new(source, config.bos_token, config.eos_token)).transpose()
    }

    /// Compiles `source`; `bos` and `eos` become `bos_token` and `eos_token` in it.
    ///
    /// # Errors
    /// If the template is not valid.
    pub fn new(source: String, bos: Option<String>, eos: Option<String>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| sentence(&e))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| calendar::format_now(&format));
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, without_generation_marks(&source)).map_err(|e| sentence(&e))?;
        Ok(Self { environment: Arc::new(environment), source, bos, eos })
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// If the template refuses the conversation or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|e| sentence(&e))?;
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos.as_deref().unwrap_or_default(),
            eos_token => self.eos.as_deref().unwrap_or_default(),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        template.render(context).map_err(|e| sentence(&e))
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({} bytes)", self.source.len())
    }
}

/// A template is a text or a list of `{name, template}`.
fn pick(value: &serde_json::Value) -> Result<String> {
    let text = |v: &serde_json::Value| v.as_str().map(str::to_string);
    let named =
        |list: &[serde_json::Value], name: &str| list.iter().find(|entry| entry["name"] == name).and_then(|entry| text(&entry["template"]));
    let found = match value {
        serde_json::Value::Array(list) => named(list, "default").or_else(|| list.first().and_then(|entry| text(&entry["template"]))),
        other => text(other),
    };
    found.ok_or_else(|| Error::Template { what: "is neither a text nor a list of named templates".into() })
}

/// transformers marks the assistant's words with `{% generation %}` for training masks; rendering ignores it.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let tag = &rest[start + 2..start + 2 + length];
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        if word == "generation" || word == "endgeneration" {
            // A block that does nothing keeps the tag's white-space control.
            let (left, right) = (if tag.starts_with('-') { "-" } else { "" }, if tag.ends_with('-') { "-" } else { "" });
            out.push_str(&rest[..start]);
            out.push_str(&format!("{{%{left} set _mark = 0 {right}%}}"));
        } else {
            out.push_str(&rest[..start + length + 4]);
        }
        rest = &rest[start + length + 4..];
    }
    out + rest
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
}

/// Marks an error as the template's own words.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Raised;

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: `", "` and `": "`, nothing escaped for HTML.
fn tojson(value: &Value, args: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = args.get("indent")?;
    // Other arguments (ensure_ascii, sort_keys) do not change what these templates print.
    let fail = |e: serde_json::Error| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string());
    let json = serde_json::to_value(value).map_err(fail)?;
    let mut out = String::new();
    write_json(&json, indent, 0, &mut out);
    Ok(Value::from_safe_string(out))
}

fn write_json(json: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value::{Array, Object};
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let (open, close, len) = match json {
        Array(items) => ('[', ']', items.len()),
        Object(fields) => ('{', '}', fields.len()),
        plain => return out.push_str(&plain.to_string()),
    };
    out.push(open);
    let mut item = |i: usize, key: Option<&str>, value: &serde_json::Value| {
        if i > 0 {
            out.push_str(comma);
        }
        line(out, depth + 1);
        if let Some(key) = key {
            out.push_str(&serde_json::Value::from(key).to_string());
            out.push_str(": ");
        }
        write_json(value, indent, depth + 1, out);
    };
    match json {
        Array(items) => items.iter().enumerate().for_each(|(i, v)| item(i, None, v)),
        Object(fields) => fields.iter().enumerate().for_each(|(i, (k, v))| item(i, Some(k), v)),
        _ => {}
    }
    if len > 0 {
        line(out, depth);
    }
    out.push(close);
}

/// A template error as a sentence; the template's own refusal in its own words.
fn sentence(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if e.downcast_ref::<minijinja::Error>().is_some_and(|e| std::error::Error::source(e).is_some_and(|s| s.is::<Raised>())) {
            let text = e.downcast_ref::<minijinja::Error>().and_then(|e| e.detail()).unwrap_or("no reason given");
            return Error::Conversation(text.to_string());
        }
        cause = e.source();
    }
    let line = error.line().map(|n| format!(" in line {n}")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), |d| format!("{} ({d})", error.kind()));
    Error::Template { what: format!("fails{line}: {detail}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        ChatTemplate::new(source.into(), Some("<s>".into()), Some("</s>".into()))?.render(messages, true)
    }

    fn conversation() -> Vec<Message> {
        vec![Message::new("system", "Be brief."), Message::new("user", " Hello <you>! "), Message::new("assistant", "Hi")]
    }

    #[test]
    fn blocks_swallow_their_line_like_transformers() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if m['role'] == 'user' %}\n[{{ m.content.strip() }}]{{ eos_token }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n>\n{% endif %}\n";
        assert_eq!(render(source, &conversation()).unwrap(), "<s>\n[Hello <you>!]</s>\n>\n");
    }

    #[test]
    fn python_idioms_work() {
        let source = "{%- set ns = namespace(n=0) -%}{%- for m in messages[::-1] -%}{%- set ns.n = ns.n + 1 -%}{{ loop.index0 }}{{ m.role.upper() }}{{ '|' if not loop.last }}{%- endfor -%}{{ ns.n }}{{ 'a/b'.split('/')[-1] }}{{ messages[0].content.startswith('Be') }}";
        assert_eq!(render(source, &conversation()).unwrap(), "0ASSISTANT|1USER|2SYSTEM3bTrue");
    }

    #[test]
    fn absent_tools_are_none_and_undefined_is_falsy() {
        let source = "{% if tools is none and not custom_tools %}{{ documents is defined }}{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "True");
    }

    #[test]
    fn generation_marks_are_ignored() {
        let source = "a{% generation %}b {%- endgeneration -%}  c";
        assert_eq!(render(source, &[]).unwrap(), "abc");
        // The end of a tag is not the beginning's own sign.
        assert!(render("{%}", &[]).is_err());
    }

    #[test]
    fn json_is_pythons() {
        let source = "{{ messages[1] | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ [] | tojson }}";
        let text = render(source, &conversation()).unwrap();
        assert_eq!(
            text,
            "{\"role\": \"user\", \"content\": \" Hello <you>! \"}|{\n  \"role\": \"system\",\n  \"content\": \"Be brief.\"\n}|[]"
        );
    }

    #[test]
    fn errors_are_sentences() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(refused.to_string(), "the model's chat template refuses this conversation: roles must alternate");
        let broken = render("\n{{ 1 | no_such_filter }}", &[]).unwrap_err().to_string();
        assert!(broken.contains("line 2") && broken.contains("no_such_filter"), "{broken}");
        let syntax = render("{% if %}", &[]).unwrap_err().to_string();
        assert!(syntax.starts_with("the chat template fails in line 1"), "{syntax}");
    }

    #[test]
    fn named_templates() {
        let list = serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(pick(&list).unwrap(), "d");
        assert_eq!(pick(&serde_json::json!("x")).unwrap(), "x");
        assert!(pick(&serde_json::json!(3)).is_err());
    }
}
