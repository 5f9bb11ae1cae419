//! Ranks and scales: PEFT's rules for `r`, `lora_alpha`, `use_rslora` and the two patterns.

use serde_json::Value;

use crate::error::{Result, Warning, few, one_line};
use crate::fields::Fields;
use crate::pattern::Pattern;
use crate::targets::Module;

/// The ranks and scales of all modules.
pub(crate) struct Scaling {
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    ranks: Vec<Special<usize>>,
    alphas: Vec<Special<f64>>,
}

/// The rank or numerator of the modules that a pattern matches.
struct Special<T> {
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

    /// Rank and scale of one module; the first pattern that matches wins (`get_pattern_key` in PEFT's other.py).
    pub(crate) fn of(&self, module: &str, fields: &Fields, max_rank: usize) -> Result<(usize, f32)> {
        let rank = first(&self.ranks, module, fields, "rank_pattern")?.unwrap_or(self.rank);
        if !(1..=max_rank).contains(&rank) {
            let expected = format!("rank {rank} is not supported, expected 1 to {max_rank}");
            return Err(fields.refuse("rank_pattern", &expected));
        }
        let alpha = first(&self.alphas, module, fields, "alpha_pattern")?.unwrap_or(self.alpha);
        let divisor = if self.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    }

    /// The warnings that PEFT gives once the modules are known.
    pub(crate) fn warnings(&self, modules: &[&Module], fields: &Fields) -> Result<Vec<Warning>> {
        let ranks = unused(&self.ranks, modules, fields, "rank_pattern")?;
        let alphas = unused(&self.alphas, modules, fields, "alpha_pattern")?;
        Ok(ranks.into_iter().chain(alphas).collect())
    }
}

fn first<T: Copy>(specials: &[Special<T>], module: &str, fields: &Fields, field: &str) -> Result<Option<T>> {
    for special in specials {
        if special.matches(module, fields, field)? {
            return Ok(Some(special.value));
        }
    }
    Ok(None)
}

impl<T> Special<T> {
    fn matches(&self, module: &str, fields: &Fields, field: &str) -> Result<bool> {
        self.pattern.is_match(module).map_err(|what| fields.refuse(field, &format!("which {what}")))
    }
}

/// Warns of keys that match none of the modules.
fn unused<T>(specials: &[Special<T>], modules: &[&Module], fields: &Fields, field: &str) -> Result<Option<Warning>> {
    let mut unused = vec![];
    for special in specials {
        let mut used = false;
        for module in modules {
            used |= special.matches(&module.name, fields, field)?;
        }
        if !used {
            unused.push(&special.key);
        }
    }
    let message = || format!("{field} names {}, which matches no adapted module", few(&unused));
    Ok((!unused.is_empty()).then(|| Warning::new(fields.path(), message())))
}

fn patterns<T>(
    fields: &Fields,
    field: &str,
    kind: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<Special<T>>> {
    let map = match fields.get(field) {
        None | Some(Value::Null) => return Ok(vec![]),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(fields.refuse(field, "expected an object")),
    };
    map.iter()
        .map(|(key, value)| {
            let pattern = Pattern::tail(key).map_err(|what| fields.refuse(field, &format!("but {what}")))?;
            let value = read(value)
                .ok_or_else(|| fields.refuse(field, &format!("but '{}' maps to no {kind} number", one_line(key))))?;
            Ok(Special { key: key.clone(), pattern, value })
        })
        .collect()
}
