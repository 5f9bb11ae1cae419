//! LoRA: the factors, rank and scale of every module that PEFT would adapt.

use std::collections::HashSet;

use serde_json::Value;

use crate::adapter::Adapter;
use crate::checkpoint::Tensor;
use crate::error::{Error, Result, Warning, first_few};
use crate::fields::Fields;
use crate::scaling::Scaling;
use crate::tables;
use crate::targets::{Kind, Model, Module, targeted};

/// A LoRA: W becomes W + scale·B·A for each of its modules.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The adapted modules, in the model's order.
    pub modules: Vec<AdaptedModule>,
    /// Warnings about what PEFT ignores as well.
    pub warnings: Vec<Warning>,
}

/// One module's factors.
#[derive(Debug, Clone)]
pub struct AdaptedModule {
    /// The module's name.
    pub name: String,
    /// A, `[rank, d_in]`.
    pub a: Tensor,
    /// B, `[d_out, rank]`.
    pub b: Tensor,
    /// The rank r.
    pub rank: usize,
    /// The factor of B·A: α/r, or α/√r for rank-stabilised LoRA.
    pub scale: f32,
}

/// What PEFT does with a module that the file has no tensors for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Initialisation {
    /// B is zero, so the module is unchanged.
    Zero,
    /// A and B are random, so PEFT's result differs every time.
    Random,
}

impl Adapter {
    /// The LoRA for a model with these modules. Ranks above `max_rank` are refused.
    ///
    /// As in PEFT, a module that the configuration adapts but that has no tensors in the file is unchanged, and tensors
    /// of a module that the configuration does not adapt are not used. Both cases give a warning.
    ///
    /// # Errors
    /// [`Error::Field`] for a field that is wrong, unsupported or contradicts the tensors; [`Error::MissingTensor`],
    /// [`Error::UnknownTensor`], [`Error::Shape`], [`Error::Dtype`].
    pub fn lora(&self, model: &Model, max_rank: usize) -> Result<Lora> {
        let fields = self.fields();
        if fields.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            return Err(fields.refuse("peft_type", "expected LORA"));
        }
        fields.check(tables::LORA)?;
        check_values(fields)?;
        let start = initialisation(fields)?;
        let scaling = Scaling::read(fields, max_rank)?;
        let (adapted, mut warnings) = targeted(fields, model)?;
        warnings.extend(scaling.warnings(&adapted, fields)?);

        let mut modules = vec![];
        let mut missing = vec![];
        let mut read = HashSet::new();
        for module in &adapted {
            let (rank, scale) = scaling.of(&module.name, fields, max_rank)?;
            match self.factors(module, rank, &mut read)? {
                Some((a, b)) => modules.push(AdaptedModule { name: module.name.clone(), a, b, rank, scale }),
                None => missing.push(&module.name[..]),
            }
        }
        warnings.extend(self.check_unread_tensors(model, &read)?);
        if modules.is_empty() {
            let key = key(&adapted[0].name, "A");
            return Err(Error::MissingTensor { path: self.weights().path().into(), key, expected: expected(model) });
        }
        if !missing.is_empty() {
            if start == Initialisation::Random {
                let what = format!(
                    "but the file has no tensors for {}, which PEFT would initialise at random",
                    first_few(&missing)
                );
                return Err(fields.refuse("init_lora_weights", &what));
            }
            let message = format!("no tensors for {}, which stay unchanged, as in PEFT", first_few(&missing));
            warnings.push(Warning::new(self.weights().path(), message));
        }
        Ok(Lora { modules, warnings })
    }

    /// A and B of a module; `None` if the file has neither.
    fn factors(&self, module: &Module, rank: usize, read: &mut HashSet<String>) -> Result<Option<(Tensor, Tensor)>> {
        let Kind::Linear { d_in, d_out } = module.kind else { return Ok(None) };
        let (key_a, key_b) = (key(&module.name, "A"), key(&module.name, "B"));
        let file = self.weights();
        if !file.contains(&key_a) && !file.contains(&key_b) {
            return Ok(None);
        }
        let a = file.floats(&key_a, &[rank, d_in])?;
        let b = file.floats(&key_b, &[d_out, rank])?;
        read.extend([key_a, key_b]);
        Ok(Some((a, b)))
    }

    /// Checks the tensors that were not read. PEFT ignores factors of modules that it does not adapt, which is a
    /// warning. Any other tensor may be a base weight that PEFT would load, or belong to another model, so it is an
    /// error.
    fn check_unread_tensors(&self, model: &Model, read: &HashSet<String>) -> Result<Option<Warning>> {
        let path = self.weights().path();
        let mut ignored = vec![];
        for name in self.weights().keys().filter(|name| !read.contains(*name)) {
            let linear = |module: &&Module| matches!(module.kind, Kind::Linear { .. });
            let mut modules = model.modules.iter().filter(linear);
            if !modules.any(|module| name == key(&module.name, "A") || name == key(&module.name, "B")) {
                return Err(Error::UnknownTensor { path: path.into(), key: name.into(), expected: expected(model) });
            }
            ignored.push(name);
        }
        if ignored.is_empty() {
            return Ok(None);
        }
        let message =
            format!("{} of modules that adapter_config.json does not adapt: ignored, as in PEFT", first_few(&ignored));
        Ok(Some(Warning::new(path, message)))
    }
}

fn key(module: &str, factor: &str) -> String {
    format!("base_model.model.{module}.lora_{factor}.weight")
}

fn expected(model: &Model) -> String {
    format!("lora_A and lora_B of {}", model.description)
}

fn check_values(fields: &Fields) -> Result<()> {
    if fields.get("bias").is_some_and(|v| v != "none") {
        return Err(fields.refuse("bias", "expected none: trained biases are not supported"));
    }
    let dropout =
        fields.get("lora_dropout").is_none_or(|v| v.is_null() || v.as_f64().is_some_and(|p| (0.0..=1.0).contains(&p)));
    if !dropout {
        return Err(fields.refuse("lora_dropout", "expected a number from 0 to 1"));
    }
    check_task(fields, &["CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
}

/// `task_type` must be one of PEFT's names for a model without an encoder, or missing.
pub(crate) fn check_task(fields: &Fields, known: &[&str]) -> Result<()> {
    match fields.get("task_type") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(task)) if known.contains(&task.as_str()) => Ok(()),
        Some(_) => Err(fields.refuse("task_type", &format!("expected {}", known.join(", ")))),
    }
}

/// Reads `init_lora_weights`. With some values, PEFT changes W0 when it *loads* an adapter: the stored factors are for
/// the changed W0, which needs an SVD or QR of each weight. Such an adapter is refused; PEFT can convert it into one
/// for the unchanged model, which is accepted.
fn initialisation(fields: &Fields) -> Result<Initialisation> {
    let field = "init_lora_weights";
    let changes_weights = |how: &str, convert: &str| {
        let what = format!(
            "which changes the base weights ({how}) whenever PEFT loads the adapter: convert it with {convert}"
        );
        Err(fields.refuse(field, &what))
    };
    let initial = "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)";
    match fields.get(field) {
        // B starts at zero, so A has no effect.
        None | Some(Value::Bool(true)) => return Ok(Initialisation::Zero),
        // Python counts null as false.
        Some(Value::Bool(false) | Value::Null) => return Ok(Initialisation::Random),
        Some(Value::String(text)) => match text.to_lowercase().as_str() {
            "gaussian" => return Ok(Initialisation::Zero),
            // PEFT compares these two case-sensitively. EVA computes A from data; B starts at zero.
            "eva" if text == "eva" => return Ok(Initialisation::Zero),
            "orthogonal" if text == "orthogonal" => return Ok(Initialisation::Random),
            // B starts at the weight's smallest singular vectors and A at zero; W0 is unchanged.
            "mica" => return Ok(Initialisation::Zero),
            "olora" => return changes_weights("it subtracts the first columns of their QR decomposition", initial),
            "pissa" => return changes_weights("it subtracts their largest singular values", initial),
            other if other.starts_with("pissa_niter_") => {
                return changes_weights("it subtracts approximations of their largest singular values", initial);
            }
            "corda" => return changes_weights("it subtracts singular values that it selects by data", initial),
            "loftq" => {
                return changes_weights(
                    "it quantizes them",
                    "PEFT's replace_lora_weights_loftq, or merge it with PEFT",
                );
            }
            "lora_ga" => {
                return changes_weights(
                    "it subtracts factors made from gradients",
                    "PEFT's save_mutated_as_lora, or merge it with PEFT",
                );
            }
            _ => {}
        },
        Some(_) => {}
    }
    Err(fields.refuse(field, "expected true, false, gaussian, eva, orthogonal or mica"))
}
