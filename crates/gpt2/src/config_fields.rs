//! The fields of GPT-2's `config.json`, and how each is treated. The model is that of transformers 5 at inference.

use fused_lora_peft::Rule::{Harmless, MustBeFalse, Read};
use fused_lora_peft::{Field, Fields, Warning, first_few, is_false};
use serde_json::Value;

use crate::error::Result;

const DROPOUT: &str = "dropout has no effect at inference";
const DOUBLE_HEADS: &str = "the head of GPT2DoubleHeadsModel, whose tensors are refused by name";
const CLASSIFIER: &str = "a classifier's head, whose tensors are refused by name";
const GENERATION: &str = "how tokens are chosen from the logits";
const OUTPUTS: &str = "which results a call returns";
const WRITER: &str = "the software that wrote the file, or its origin";

/// How each field is treated.
pub const FIELDS: &[Field] = &[
    Field::new("model_type", Read, "must be gpt2"),
    Field::new("n_layer", Read, "transformer blocks"),
    Field::new("n_embd", Read, "width of the residual stream"),
    Field::new("n_head", Read, "attention heads"),
    Field::new("n_inner", Read, "width of the MLP, 4 times n_embd if null"),
    Field::new("vocab_size", Read, "number of token ids"),
    Field::new("n_positions", Read, "the longest sequence"),
    Field::new("num_hidden_layers", Read, "another name for n_layer, which it must agree with"),
    Field::new("hidden_size", Read, "another name for n_embd, which it must agree with"),
    Field::new("num_attention_heads", Read, "another name for n_head, which it must agree with"),
    Field::new("max_position_embeddings", Read, "another name for n_positions, which it must agree with"),
    Field::new("layer_norm_epsilon", Read, "ε of every LayerNorm"),
    Field::new("activation_function", Read, "the MLP's activation"),
    Field::new("scale_attn_weights", Read, "whether scores are divided by the root of a head's width"),
    Field::new("scale_attn_by_inverse_layer_idx", Read, "whether scores are divided by the layer's number"),
    Field::new("add_cross_attention", Read, "must be false"),
    Field::new("tie_word_embeddings", Read, "whether lm_head is the token embedding"),
    Field::new("is_causal", Read, "if it is false, transformers 5 lets tokens attend to later ones"),
    Field::new("quantization_config", MustBeFalse, "the weights are quantized"),
    Field::new("pruned_heads", MustBeFalse, "transformers 4 removes these heads"),
    Field::new("auto_map", MustBeFalse, "the folder has its own code that runs the model"),
    Field::new("is_encoder_decoder", MustBeFalse, "GPT-2 has no encoder"),
    Field::new("cross_attention_hidden_size", MustBeFalse, "the width of an encoder that is attended to"),
    Field::new("reorder_and_upcast_attn", Harmless, "another order of the same products"),
    Field::new("attn_implementation", Harmless, "another kernel for the same attention"),
    Field::new("_attn_implementation_autoset", Harmless, "another kernel for the same attention"),
    Field::new("attn_pdrop", Harmless, DROPOUT),
    Field::new("embd_pdrop", Harmless, DROPOUT),
    Field::new("resid_pdrop", Harmless, DROPOUT),
    Field::new("initializer_range", Harmless, "the initialisation of weights before training"),
    Field::new("gradient_checkpointing", Harmless, "whether training recomputes activations"),
    Field::new("use_cache", Harmless, "whether keys and values are cached"),
    Field::new("dtype", Harmless, "the type that transformers loads into; the caller chooses it here"),
    Field::new("torch_dtype", Harmless, "the type that transformers 4 loads into; the caller chooses it here"),
    Field::new("use_bfloat16", Harmless, "a type that TensorFlow computes in"),
    Field::new("torchscript", Harmless, "how tied weights are exported"),
    Field::new("n_ctx", Harmless, "an old name for n_positions that is not read any more"),
    Field::new("is_decoder", Harmless, "GPT-2 is always a decoder"),
    Field::new("tie_encoder_decoder", Harmless, "only read for models with an encoder"),
    Field::new("chunk_size_feed_forward", Harmless, "GPT-2's MLP is not chunked"),
    Field::new(
        "architectures",
        Harmless,
        "the class that was saved; tensors that GPT2LMHeadModel lacks are refused by name",
    ),
    Field::new("summary_type", Harmless, DOUBLE_HEADS),
    Field::new("summary_use_proj", Harmless, DOUBLE_HEADS),
    Field::new("summary_activation", Harmless, DOUBLE_HEADS),
    Field::new("summary_proj_to_labels", Harmless, DOUBLE_HEADS),
    Field::new("summary_first_dropout", Harmless, DOUBLE_HEADS),
    Field::new("summary_last_dropout", Harmless, DOUBLE_HEADS),
    Field::new("id2label", Harmless, CLASSIFIER),
    Field::new("label2id", Harmless, CLASSIFIER),
    Field::new("num_labels", Harmless, CLASSIFIER),
    Field::new("_num_labels", Harmless, CLASSIFIER),
    Field::new("problem_type", Harmless, CLASSIFIER),
    Field::new("classifier_dropout", Harmless, CLASSIFIER),
    Field::new("finetuning_task", Harmless, CLASSIFIER),
    Field::new("output_attentions", Harmless, OUTPUTS),
    Field::new("output_hidden_states", Harmless, OUTPUTS),
    Field::new("output_past", Harmless, OUTPUTS),
    Field::new("return_dict", Harmless, OUTPUTS),
    Field::new("task_specific_params", Harmless, GENERATION),
    Field::new("bos_token_id", Harmless, GENERATION),
    Field::new("eos_token_id", Harmless, GENERATION),
    Field::new("pad_token_id", Harmless, GENERATION),
    Field::new("sep_token_id", Harmless, GENERATION),
    Field::new("decoder_start_token_id", Harmless, GENERATION),
    Field::new("max_length", Harmless, GENERATION),
    Field::new("min_length", Harmless, GENERATION),
    Field::new("do_sample", Harmless, GENERATION),
    Field::new("early_stopping", Harmless, GENERATION),
    Field::new("num_beams", Harmless, GENERATION),
    Field::new("num_beam_groups", Harmless, GENERATION),
    Field::new("diversity_penalty", Harmless, GENERATION),
    Field::new("temperature", Harmless, GENERATION),
    Field::new("top_k", Harmless, GENERATION),
    Field::new("top_p", Harmless, GENERATION),
    Field::new("typical_p", Harmless, GENERATION),
    Field::new("repetition_penalty", Harmless, GENERATION),
    Field::new("length_penalty", Harmless, GENERATION),
    Field::new("no_repeat_ngram_size", Harmless, GENERATION),
    Field::new("encoder_no_repeat_ngram_size", Harmless, GENERATION),
    Field::new("bad_words_ids", Harmless, GENERATION),
    Field::new("num_return_sequences", Harmless, GENERATION),
    Field::new("output_scores", Harmless, GENERATION),
    Field::new("return_dict_in_generate", Harmless, GENERATION),
    Field::new("forced_bos_token_id", Harmless, GENERATION),
    Field::new("forced_eos_token_id", Harmless, GENERATION),
    Field::new("remove_invalid_values", Harmless, GENERATION),
    Field::new("exponential_decay_length_penalty", Harmless, GENERATION),
    Field::new("suppress_tokens", Harmless, GENERATION),
    Field::new("begin_suppress_tokens", Harmless, GENERATION),
    Field::new("prefix", Harmless, GENERATION),
    Field::new("tokenizer_class", Harmless, "how text becomes tokens; here callers give tokens"),
    Field::new("predict_special_tokens", Harmless, "only read by transformers before version 2"),
    Field::new("transformers_version", Harmless, WRITER),
    Field::new("_name_or_path", Harmless, WRITER),
    Field::new("_commit_hash", Harmless, WRITER),
];

/// Checks that no field has an unsupported value.
///
/// # Errors
/// [`Error::Checkpoint`](crate::Error::Checkpoint) for a field whose value is not supported.
pub(crate) fn check(fields: &Fields) -> Result<()> {
    if fields.get("model_type").is_some_and(|t| t != "gpt2") {
        return Err(fields.refuse("model_type", "expected gpt2").into());
    }
    for field in FIELDS.iter().filter(|field| field.rule == MustBeFalse) {
        if fields.get(field.name).is_some_and(|value| !is_false(value)) {
            return Err(fields.refuse(field.name, &format!("which is not supported: {}", field.reason)).into());
        }
    }
    if fields.flag("add_cross_attention", false)? {
        return Err(fields.refuse("add_cross_attention", "which is not supported").into());
    }
    if !fields.flag("is_causal", true)? {
        return Err(fields.refuse("is_causal", "but attention to later tokens is not supported").into());
    }
    let aliases = [
        ("num_hidden_layers", "n_layer"),
        ("hidden_size", "n_embd"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
    ];
    for (alias, name) in aliases {
        if let Some(value) = fields.get(alias)
            && fields.get(name) != Some(value)
        {
            let other = fields.get(name).map_or("missing".into(), Value::to_string);
            return Err(fields.refuse(alias, &format!("but {name}, of which it is an alias, is {other}")).into());
        }
    }
    Ok(())
}

/// A warning about fields that are set but unknown. transformers' GPT-2 does not read them, but somebody may expect
/// them to have an effect.
pub(crate) fn warnings(fields: &Fields) -> Option<Warning> {
    let unknown =
        |(name, value): &(&String, &Value)| !is_false(value) && !FIELDS.iter().any(|field| field.name == name.as_str());
    let unknown: Vec<&String> = fields.iter().filter(unknown).map(|(name, _)| name).collect();
    let message = || format!("{} set, which GPT-2 does not read", first_few(&unknown));
    (!unknown.is_empty()).then(|| Warning::new(fields.path(), message()))
}
