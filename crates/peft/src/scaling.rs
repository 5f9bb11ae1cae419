//! Ranks and scales: PEFT's rules for `r`, `lora_alpha`, `use_rslora` and the two patterns.

use serde_json::Value;

use crate::error::{Result, one_line};
use crate::fields::Fields;
use crate::pattern::Pattern;

/// The ranks and scales of all modules.
pub(crate) struct Scaling {
    rank: usize,
    alpha: f64,
    rank_stabilized: bool,
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

impl Scaling {
    pub(crate) fn read(fields: &Fields, max_rank: usize) -> Result<Self> {
        // Scales are kept as f32, and dividing by a rank makes none of them larger.
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
}

fn first<T: Copy>(patterns: &[(Pattern, T)], module: &str, fields: &Fields, field: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if pattern.is_match(module).map_err(|what| fields.refuse(field, &format!("which {what}")))? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn patterns<T>(
    fields: &Fields,
    field: &str,
    kind: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Pattern, T)>> {
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
            Ok((pattern, value))
        })
        .collect()
}
