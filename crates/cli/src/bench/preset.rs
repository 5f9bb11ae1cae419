//! `--preset`: named sets of cases.

use serde::Serialize;

/// The values of `--preset`. A list given as well replaces that of the preset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Preset {
    /// 1 to 16 tokens: text generation
    Decode,
    /// 128 to 16384 tokens: prompts and training
    Forward,
    /// 512 to 8192 tokens, forward and backward: training
    Backward,
}

/// The default of an option under each preset, in the form that clap's `default_value_ifs` takes.
type Values = [(&'static str, &'static str, &'static str); 3];

pub(super) const TOKENS: Values = [
    ("preset", "decode", "1,2,4,8,16"),
    ("preset", "forward", "128,512,4096,16384"),
    ("preset", "backward", "512,2048,8192"),
];
pub(super) const SHAPES: Values = [
    ("preset", "decode", "4096x4096,4096x11008,1024x1024,1024x3072,1024x4096"),
    ("preset", "forward", "1024x3072,1024x4096,4096x1024,4096x4096,4096x14336,8192x8192"),
    ("preset", "backward", "1024x4096,4096x4096,4096x14336"),
];
pub(super) const RANKS: Values =
    [("preset", "decode", "4,16,64"), ("preset", "forward", "4,16,64"), ("preset", "backward", "16,64")];

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::bench::Args;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(arguments: &[&str]) -> Args {
        Cli::try_parse_from(["bench"].iter().chain(arguments)).map_or_else(|e| panic!("{e}"), |cli| cli.args)
    }

    #[test]
    fn a_preset_sets_tokens_shapes_and_ranks() {
        let forward = parsed(&["--preset", "forward"]);
        assert_eq!(forward.tokens, [128, 512, 4096, 16384]);
        assert_eq!((forward.shapes.len(), forward.shapes[5]), (6, (8192, 8192)));
        assert_eq!(forward.ranks, [4, 16, 64]);
        let decode = parsed(&["--preset", "decode"]);
        assert_eq!(decode.tokens, [1, 2, 4, 8, 16]);
        assert_eq!((decode.shapes.len(), decode.shapes[1]), (5, (4096, 11008)));
        assert_eq!(decode.ranks, [4, 16, 64]);
        let backward = parsed(&["--preset", "backward"]);
        assert_eq!(backward.tokens, [512, 2048, 8192]);
        assert_eq!(backward.shapes, [(1024, 4096), (4096, 4096), (4096, 14336)]);
        assert_eq!(backward.ranks, [16, 64]);
        assert!(backward.is_backward() && !forward.is_backward() && parsed(&["--backward"]).is_backward());
    }

    #[test]
    fn an_explicit_list_replaces_that_of_the_preset() {
        let args = parsed(&["--preset", "forward", "--tokens", "17,64", "--ranks", "8"]);
        assert_eq!((&args.tokens[..], &args.ranks[..]), (&[17, 64][..], &[8][..]));
        assert_eq!(args.shapes.len(), 6);
        assert_eq!(parsed(&[]).tokens, [1, 16, 128]);
        assert!(Cli::try_parse_from(["bench", "--preset", "sideways"]).is_err());
    }
}
