//! The fields of PEFT's configurations, one by one, as PEFT 0.21 reads them when it loads an adapter for inference.
//!
//! A field that is in no table may come from a newer version. It is accepted if Python counts its value as false.

use crate::fields::Field;
use crate::fields::Rule::{Harmless, MustBeFalse, MustBeNull, Read};

/// `LoraConfig`.
pub const LORA: &[Field] = &[
    Field::new("peft_type", Read, "names the kind of adapter"),
    Field::new("r", Read, "the rank"),
    Field::new("lora_alpha", Read, "the scale's numerator"),
    Field::new("use_rslora", Read, "the scale's denominator is the rank's square root"),
    Field::new("rank_pattern", Read, "ranks of single modules"),
    Field::new("alpha_pattern", Read, "numerators of single modules"),
    Field::new("target_modules", Read, "which modules are adapted"),
    Field::new("exclude_modules", Read, "which modules are not adapted after all"),
    Field::new("layers_to_transform", Read, "in which layers modules are adapted"),
    Field::new("layers_pattern", Read, "how the names of layers are spelled"),
    Field::new("bias", Read, "anything but \"none\" stores trained biases and is refused"),
    Field::new("init_lora_weights", Read, "some initialisations change the base weights and are refused"),
    Field::new("lora_dropout", Read, "a probability; dropout does nothing at inference"),
    Field::new("task_type", Read, "PEFT refuses names that it does not know"),
    Field::new(
        "fan_in_fan_out",
        Harmless,
        "PEFT corrects it by the type of the module: true for Conv1D, false for Linear",
    ),
    Field::new("inference_mode", Harmless, "PEFT overwrites it when it loads an adapter"),
    Field::new("peft_version", Harmless, "says who wrote the file"),
    Field::new("auto_mapping", Harmless, "says how PEFT finds the model's class; the model is the caller's here"),
    Field::new("base_model_name_or_path", Harmless, "says where the model is; the model is the caller's here"),
    Field::new("revision", Harmless, "says which version of the model that was; the model is the caller's here"),
    Field::new("runtime_config", Harmless, "PEFT deletes it from the file's fields"),
    Field::new("loftq_config", Harmless, "is read under init_lora_weights \"loftq\" only, which is refused"),
    Field::new("corda_config", Harmless, "is read under init_lora_weights \"corda\" only, which is refused"),
    Field::new("lora_ga_config", Harmless, "is read under init_lora_weights \"lora_ga\" only, which is refused"),
    Field::new("eva_config", Harmless, "is read before training only; the ranks that EVA chose stand in rank_pattern"),
    Field::new("megatron_core", Harmless, "is read under megatron_config only, which is refused"),
    Field::new("qalora_group_size", Harmless, "is read under use_qalora only, which is refused"),
    Field::new("ensure_weight_tying", Harmless, "ties adapters of embeddings and lm_head, whose tensors are refused"),
    Field::new("use_dora", MustBeFalse, "DoRA scales the columns of the adapted weight"),
    Field::new("lora_bias", MustBeFalse, "it adds a bias to B"),
    Field::new("modules_to_save", MustBeFalse, "it replaces whole modules by trained copies"),
    Field::new("layer_replication", MustBeFalse, "it repeats layers of the model"),
    Field::new("target_parameters", MustBeFalse, "it adapts parameters that no module owns"),
    Field::new("alora_invocation_tokens", MustBeFalse, "aLoRA adapts the tokens behind an invocation only"),
    Field::new("use_qalora", MustBeFalse, "QALoRA pools the input"),
    Field::new("use_bdlora", MustBeNull, "its factors are block-diagonal and are stored in another shape"),
    Field::new("arrow_config", MustBeNull, "Arrow routes tokens between adapters"),
    Field::new("megatron_config", MustBeFalse, "it adapts Megatron's parallel layers"),
    Field::new("trainable_token_indices", MustBeNull, "it replaces rows of the token embedding"),
    Field::new("kasa_config", MustBeNull, "KaSA cuts the smallest singular values off the base weights"),
    Field::new("monteclora_config", MustBeNull, "MonteCLoRA adds samples to the factors"),
    Field::new("velora_config", MustBeNull, "VeLoRA replaces the product with A"),
];

/// `PrefixTuningConfig`.
pub const PREFIX: &[Field] = &[
    Field::new("peft_type", Read, "names the kind of adapter"),
    Field::new("num_virtual_tokens", Read, "the prefix's length"),
    Field::new("token_dim", Read, "must be the model's width"),
    Field::new("num_layers", Read, "must be the model's number of layers"),
    Field::new("num_attention_heads", Read, "must be the model's number of heads"),
    Field::new("num_transformer_submodules", Read, "2 is for an encoder and a decoder and is refused"),
    Field::new("task_type", Read, "decides which of PEFT's classes applies the prefix"),
    Field::new(
        "prefix_projection",
        Read,
        "PEFT saves the prefix behind the projection: what is stored is what is used",
    ),
    Field::new("encoder_hidden_size", Harmless, "the width of the projection, which is gone once the prefix is saved"),
    Field::new("init_weights", Harmless, "what training started from; the file's values replace it"),
    Field::new("inference_mode", Harmless, "PEFT overwrites it when it loads an adapter"),
    Field::new("peft_version", Harmless, "says who wrote the file"),
    Field::new("auto_mapping", Harmless, "says how PEFT finds the model's class; the model is the caller's here"),
    Field::new("base_model_name_or_path", Harmless, "says where the model is; the model is the caller's here"),
    Field::new("revision", Harmless, "says which version of the model that was; the model is the caller's here"),
    Field::new("modules_to_save", MustBeFalse, "it replaces whole modules by trained copies"),
];
