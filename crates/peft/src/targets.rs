//! Which modules of a model a LoRA configuration adapts.

use serde_json::Value;

use crate::error::{Error, Result, Warning, first_few, one_line};
use crate::fields::{Fields, is_false};
use crate::pattern::Pattern;

/// The kind of a module, as far as PEFT's LoRA distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A linear layer, `nn.Linear` or GPT-2's `Conv1D`.
    Linear {
        /// Input features.
        d_in: usize,
        /// Output features.
        d_out: usize,
    },
    /// An `nn.Embedding`: PEFT adapts it, with tensors of other names.
    Embedding,
    /// Anything else: PEFT refuses to adapt it.
    Other,
}

/// A module of a model, by the name that torch's `named_modules` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The module's name, such as `transformer.h.0.attn.c_attn`.
    pub name: String,
    /// The module's kind.
    pub kind: Kind,
}

/// What is needed of a model to decide which of its modules are adapted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// A description for errors: `a GPT-2 of 12 layers`.
    pub description: String,
    /// The layers that can be adapted, for errors: `c_attn, c_proj or c_fc`.
    pub adaptable: String,
    /// All modules in the order of `named_modules`, containers included: PEFT refuses an adapter that targets one.
    pub modules: Vec<Module>,
    /// The output layer, which `all-linear` leaves out.
    pub output: Option<String>,
    /// The modules that PEFT adapts in a model of this type if `target_modules` is `null`.
    pub default_targets: Vec<String>,
}

enum ModuleNames {
    List(Vec<String>),
    Expression(Pattern),
    AllLinear,
}

struct LayerFilter {
    numbers: Vec<i64>,
    patterns: Vec<Pattern>,
}

/// The rules of `check_target_module_exists` in PEFT's tuners_utils.py.
struct TargetRules {
    names: ModuleNames,
    exclude: Option<ModuleNames>,
    layers: Option<LayerFilter>,
}

/// The adapted modules in the model's order, and warnings that PEFT would give.
pub(crate) fn targeted<'a>(fields: &Fields, model: &'a Model) -> Result<(Vec<&'a Module>, Vec<Warning>)> {
    let targets = TargetRules::read(fields, model)?;
    let mut warnings = vec![];
    let mut excluded = false;
    let mut adapted = vec![];
    for module in &model.modules {
        if targets.excludes(fields, module)? {
            excluded = true;
        } else if targets.includes(fields, model, module)? {
            adapted.push(module);
        }
    }
    if let Some(module) = adapted.iter().find(|module| module.kind == Kind::Other) {
        let what = format!("which adapts '{}', a module that cannot be adapted", module.name);
        return Err(fields.refuse("target_modules", &format!("{what}: expected {}", model.adaptable)));
    }
    if adapted.is_empty() {
        return Err(targets.no_module_error(fields, model));
    }
    for target in targets.unused(model) {
        let message =
            format!("target_modules has '{}', which is not a module of {}", one_line(&target), model.description);
        warnings.push(Warning::new(fields.path(), message));
    }
    if targets.exclude.is_some() && !excluded {
        warnings.push(Warning::new(fields.path(), "exclude_modules excludes nothing"));
    }
    Ok((adapted, warnings))
}

impl TargetRules {
    fn read(fields: &Fields, model: &Model) -> Result<Self> {
        let names = match fields.get("target_modules") {
            None | Some(Value::Null) => ModuleNames::List(model.default_targets.clone()),
            Some(Value::String(text)) if text.to_lowercase() == "all-linear" => ModuleNames::AllLinear,
            Some(value) => read_names(fields, "target_modules", value)?,
        };
        let exclude = match fields.get("exclude_modules") {
            Some(value) if !is_false(value) => Some(read_names(fields, "exclude_modules", value)?),
            _ => None,
        };
        let is_list = !matches!(fields.get("target_modules"), Some(Value::String(_)));
        let layers = LayerFilter::read(fields)?;
        for field in ["layers_to_transform", "layers_pattern"] {
            if !is_list && fields.get(field).is_some_and(|value| !value.is_null()) {
                return Err(fields.refuse(field, "which PEFT allows only if target_modules is a list"));
            }
        }
        Ok(Self { names, exclude, layers })
    }

    fn excludes(&self, fields: &Fields, module: &Module) -> Result<bool> {
        match &self.exclude {
            None | Some(ModuleNames::AllLinear) => Ok(false),
            Some(ModuleNames::List(names)) => Ok(names.iter().any(|name| ends_with(&module.name, name))),
            Some(ModuleNames::Expression(pattern)) => pattern
                .is_match(&module.name)
                .map_err(|what| fields.refuse("exclude_modules", &format!("which {what}"))),
        }
    }

    fn includes(&self, fields: &Fields, model: &Model, module: &Module) -> Result<bool> {
        let named = match &self.names {
            ModuleNames::Expression(pattern) => {
                let bad = |what: String| fields.refuse("target_modules", &format!("which {what}"));
                return pattern.is_match(&module.name).map_err(bad);
            }
            ModuleNames::AllLinear => {
                let linear = matches!(module.kind, Kind::Linear { .. });
                return Ok(linear && model.output.as_ref() != Some(&module.name));
            }
            // A module that is listed with its full name is adapted whatever layers_to_transform says.
            ModuleNames::List(names) if names.contains(&module.name) => return Ok(true),
            ModuleNames::List(names) => names.iter().any(|name| ends_with(&module.name, name)),
        };
        Ok(named && self.in_layer(fields, module)?)
    }

    /// Whether `layers_to_transform` allows a module.
    fn in_layer(&self, fields: &Fields, module: &Module) -> Result<bool> {
        let Some(layers) = &self.layers else { return Ok(true) };
        let bad = |what: String| fields.refuse("layers_pattern", &format!("which {what}"));
        for pattern in &layers.patterns {
            // The first pattern that matches counts, even if it captures no number.
            if let Some(number) = pattern.index(&module.name).map_err(bad)? {
                let number = number.and_then(|n| n.parse::<i64>().ok());
                return Ok(number.is_some_and(|number| layers.numbers.contains(&number)));
            }
        }
        Ok(false)
    }

    /// The listed names that match no module.
    fn unused(&self, model: &Model) -> Vec<String> {
        let ModuleNames::List(names) = &self.names else { return vec![] };
        let unused = |name: &&String| !model.modules.iter().any(|module| ends_with(&module.name, name));
        names.iter().filter(unused).cloned().collect()
    }

    fn no_module_error(&self, fields: &Fields, model: &Model) -> Error {
        let what = match &self.names {
            ModuleNames::List(names) if !names.is_empty() => first_few(names),
            _ => "it".into(),
        };
        let restriction =
            if self.exclude.is_some() || self.layers.is_some() { " that the other fields allow" } else { "" };
        let expected = format!("but {what} matches no projection{restriction}: expected {}", model.adaptable);
        fields.refuse("target_modules", &expected)
    }
}

impl LayerFilter {
    fn read(fields: &Fields) -> Result<Option<Self>> {
        let expected = "expected a layer's number or a list of them";
        let bad = || fields.refuse("layers_to_transform", expected);
        let numbers = match fields.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Array(items)) => {
                Some(items.iter().map(|v| v.as_i64().ok_or_else(bad)).collect::<Result<Vec<_>>>()?)
            }
            Some(value) => Some(vec![value.as_i64().ok_or_else(bad)?]),
        };
        let pattern =
            |text: &str| Pattern::layer(text).map_err(|what| fields.refuse("layers_pattern", &format!("but {what}")));
        let expected = "expected a name or a list of names";
        let patterns = match fields.get("layers_pattern") {
            None | Some(Value::Null) => vec![],
            Some(Value::String(text)) if text.is_empty() => vec![],
            Some(Value::String(text)) => vec![pattern(text)?],
            Some(Value::Array(items)) => {
                let text = |v: &Value| {
                    v.as_str().map(pattern).unwrap_or_else(|| Err(fields.refuse("layers_pattern", expected)))
                };
                items.iter().map(text).collect::<Result<_>>()?
            }
            Some(_) => return Err(fields.refuse("layers_pattern", expected)),
        };
        let Some(numbers) = numbers else {
            return match patterns.is_empty() {
                true => Ok(None),
                false => {
                    Err(fields.refuse("layers_pattern", "which PEFT allows only together with layers_to_transform"))
                }
            };
        };
        if numbers.is_empty() {
            return Ok(None);
        }
        let any = || Pattern::any_layer().map_err(|what| fields.refuse("layers_pattern", &what));
        let patterns = if patterns.is_empty() { vec![any()?] } else { patterns };
        Ok(Some(Self { numbers, patterns }))
    }
}

fn read_names(fields: &Fields, field: &str, value: &Value) -> Result<ModuleNames> {
    let expected = "expected a list of names, a regular expression or null";
    match value {
        Value::Array(items) => {
            let name = |item: &Value| item.as_str().map(String::from).ok_or_else(|| fields.refuse(field, expected));
            Ok(ModuleNames::List(items.iter().map(name).collect::<Result<_>>()?))
        }
        Value::String(text) => Pattern::full(text)
            .map(ModuleNames::Expression)
            .map_err(|what| fields.refuse(field, &format!("but {what}"))),
        _ => Err(fields.refuse(field, expected)),
    }
}

/// Whether a module's name is `name`, or ends with a dot and `name`.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
