//! A column of Table 1: a batch size and a number of tokens.

use anyhow::Result;
use fused_lora_gpt2::Random;

use crate::common::parse_size;

/// A column of Table 1: `batch` sequences of `tokens` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
}

impl std::str::FromStr for Column {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (batch, tokens) =
            text.split_once('x').ok_or_else(|| format!("'{text}' is not BATCHxTOKENS, as in 1x128"))?;
        Ok(Self { batch: parse_size(batch)?, tokens: parse_size(tokens)? })
    }
}

/// Random token ids for all sequences of a column.
pub(crate) fn random_tokens(seed: u64, column: Column, vocabulary: usize) -> Result<Vec<u32>> {
    let noise = Random::new(seed ^ 0x70CE).normal::<f32>(column.batch * column.tokens, 1.0)?;
    Ok(noise.iter().map(|v| v.to_bits().wrapping_mul(0x9E37_79B9) % vocabulary as u32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_parse() {
        assert_eq!("16x256".parse(), Ok(Column { batch: 16, tokens: 256 }));
        for bad in ["", "16", "x", "0x5", "5x0", "axb", "1x2x3"] {
            assert!(bad.parse::<Column>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_stay_inside_the_vocabulary() {
        let ids = random_tokens(1, Column { batch: 3, tokens: 700 }, 131).unwrap();
        assert_eq!(ids.len(), 2100);
        assert!(ids.iter().all(|&id| id < 131));
        assert!(ids.iter().collect::<std::collections::HashSet<_>>().len() > 120);
    }
}
