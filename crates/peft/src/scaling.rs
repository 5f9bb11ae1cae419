//! Ranks and scales: PEFT's rules for `r`, `lora_alpha`, `use_rslora`, `rank_pattern` and `alpha_pattern`.

use serde_json::Value;

use crate::error::{Result, Warning, first_few, one_line};
use crate::fields::Fields;
use crate::pattern::Pattern;
use crate::targets::Module;

/// The ranks and scales of all modules.
pub(crate) struct Scaling {
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    ranks: Vec<Override<usize>>,
    alphas: Vec<Override<f64>>,
}

/// An entry of `rank_pattern` or `alpha_pattern`: the rank or alpha of the modules that its key matches.
struct Override<T> {
    key: String,
    pattern: Pattern,
    value: T,
}

impl Scaling {
    pub(crate) fn read(fields: &Fields, max_rank: usize) -> Result<Self> {
        // Scales are stored as f32, and dividing by a rank cannot make them overflow.
        let alpha = |value: &Value| value.as_f64().filter(|v| (*v as f32).is_finite());
        let rank = |value: &Value| value.as_u64().and_then(|v| usize::try_from(v).ok());
        let r = fields.size("r")?;
        if r > max_rank {
            return Err(fields.refuse("r", &format!("expected a rank of at most {max_rank}")));
        }
        Ok(Self {
            rank: r,
            alpha: fields
                .get("lora_alpha")
                .map_or(Some(8.0), alpha)
                .ok_or_else(|| fields.refuse("lora_alpha", "expected a finite number"))?,
            rank_stabilized: fields.flag("use_rslora", false)?,
            ranks: patterns(fields, "rank_pattern", "whole", rank)?,
            alphas: patterns(fields, "alpha_pattern", "finite", alpha)?,
        })
    }

    /// Rank and scale of a module. The first pattern that matches counts (`get_pattern_key` in PEFT's other.py).
    pub(crate) fn of(&self, module: &str, fields: &Fields, max_rank: usize) -> Result<(usize, f32)> {
        let rank = first_match(&self.ranks, module, fields, "rank_pattern")?.unwrap_or(self.rank);
        if !(1..=max_rank).contains(&rank) {
            let expected = format!("rank {rank} is not supported, expected 1 to {max_rank}");
            return Err(fields.refuse("rank_pattern", &expected));
        }
        let alpha = first_match(&self.alphas, module, fields, "alpha_pattern")?.unwrap_or(self.alpha);
        let divisor = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    }

    /// Warnings about patterns that match none of the adapted modules, as PEFT gives them.
    pub(crate) fn warnings(&self, modules: &[&Module], fields: &Fields) -> Result<Vec<Warning>> {
        let ranks = unused(&self.ranks, modules, fields, "rank_pattern")?;
        let alphas = unused(&self.alphas, modules, fields, "alpha_pattern")?;
        Ok(ranks.into_iter().chain(alphas).collect())
    }
}

fn first_match<T: Copy>(overrides: &[Override<T>], module: &str, fields: &Fields, field: &str) -> Result<Option<T>> {
    for entry in overrides {
        if entry.matches(module, fields, field)? {
            return Ok(Some(entry.value));
        }
    }
    Ok(None)
}

impl<T> Override<T> {
    fn matches(&self, module: &str, fields: &Fields, field: &str) -> Result<bool> {
        self.pattern.is_match(module).map_err(|what| fields.refuse(field, &format!("which {what}")))
    }
}

/// A warning about keys that match none of the modules.
fn unused<T>(overrides: &[Override<T>], modules: &[&Module], fields: &Fields, field: &str) -> Result<Option<Warning>> {
    let mut unused = vec![];
    for entry in overrides {
        let mut used = false;
        for module in modules {
            used |= entry.matches(&module.name, fields, field)?;
        }
        if !used {
            unused.push(&entry.key);
        }
    }
    let message = || format!("{field} has {}, which matches no adapted module", first_few(&unused));
    Ok((!unused.is_empty()).then(|| Warning::new(fields.path(), message())))
}

fn patterns<T>(
    fields: &Fields,
    field: &str,
    kind: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<Override<T>>> {
    let map = match fields.get(field) {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.refuse(field, "expected an object")),
    };
    map.iter()
        .map(|(key, value)| {
            let pattern = Pattern::tail(key).map_err(|what| fields.refuse(field, &format!("but {what}")))?;
            let value = read(value).ok_or_else(|| {
                fields.refuse(field, &format!("but the value of '{}' is not a {kind} number", one_line(key)))
            })?;
            Ok(Override { key: key.clone(), pattern, value })
        })
        .collect()
}
