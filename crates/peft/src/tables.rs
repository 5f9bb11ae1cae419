//! The fields of PEFT's configurations, and how each is treated. The model is PEFT 0.21 when it loads an adapter for
//! inference.
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
    Field::new("rank_pattern", Read, "ranks of individual modules"),
    Field::new("alpha_pattern", Read, "alphas of individual modules"),
    Field::new("target_modules", Read, "which modules are adapted"),
    Field::new("exclude_modules", Read, "which of these modules are not adapted"),
    Field::new("layers_to_transform", Read, "in which layers modules are adapted"),
    Field::new("layers_pattern", Read, "the name of the list of layers"),
    Field::new("bias", Read, "anything but \"none\" stores trained biases and is refused"),
    Field::new("init_lora_weights", Read, "some initialisations change the base weights and are refused"),
    Field::new("lora_dropout", Read, "a probability; dropout has no effect at inference"),
    Field::new("task_type", Read, "PEFT refuses names that it does not know"),
    Field::new(
        "fan_in_fan_out",
        Harmless,
        "PEFT corrects it by the type of the module: true for Conv1D, false for Linear",
    ),
    Field::new("inference_mode", Harmless, "PEFT overwrites it when it loads an adapter"),
    Field::new("peft_version", Harmless, "the version that wrote the file"),
    Field::new("auto_mapping", Harmless, "how PEFT finds the model's class; here the caller gives the model"),
    Field::new("base_model_name_or_path", Harmless, "where the model is; here the caller gives the model"),
    Field::new("revision", Harmless, "the version of the model; here the caller gives the model"),
    Field::new("runtime_config", Harmless, "PEFT deletes this field when it loads the file"),
    Field::new("loftq_config", Harmless, "only read with init_lora_weights \"loftq\", which is refused"),
    Field::new("corda_config", Harmless, "only read with init_lora_weights \"corda\", which is refused"),
    Field::new("lora_ga_config", Harmless, "only read with init_lora_weights \"lora_ga\", which is refused"),
    Field::new("eva_config", Harmless, "only read before training; the ranks that EVA chose are in rank_pattern"),
    Field::new("megatron_core", Harmless, "only read with megatron_config, which is refused"),
    Field::new("qalora_group_size", Harmless, "only read with use_qalora, which is refused"),
    Field::new("ensure_weight_tying", Harmless, "ties adapters of embeddings and lm_head, whose tensors are refused"),
    Field::new("use_dora", MustBeFalse, "DoRA scales the columns of the adapted weight"),
    Field::new("lora_bias", MustBeFalse, "it adds a bias to B"),
    Field::new("modules_to_save", MustBeFalse, "it replaces whole modules by trained copies"),
    Field::new("layer_replication", MustBeFalse, "it repeats layers of the model"),
    Field::new("target_parameters", MustBeFalse, "it adapts parameters instead of modules"),
    Field::new("alora_invocation_tokens", MustBeFalse, "aLoRA adapts only the tokens after an invocation"),
    Field::new("use_qalora", MustBeFalse, "QALoRA pools the input"),
    Field::new("use_bdlora", MustBeNull, "its factors are block-diagonal and are stored in another shape"),
    Field::new("arrow_config", MustBeNull, "Arrow routes tokens between adapters"),
    Field::new("megatron_config", MustBeFalse, "it adapts Megatron's parallel layers"),
    Field::new("trainable_token_indices", MustBeNull, "it replaces rows of the token embedding"),
    Field::new("kasa_config", MustBeNull, "KaSA removes the smallest singular values of the base weights"),
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
    Field::new("num_transformer_submodules", Read, "2 is for models with encoder and decoder, and is refused"),
    Field::new("task_type", Read, "decides which of PEFT's classes applies the prefix"),
    Field::new(
        "prefix_projection",
        Read,
        "PEFT saves the output of the projection, so the stored prefix is used as it is",
    ),
    Field::new("encoder_hidden_size", Harmless, "the width of the projection, which a saved prefix does not need"),
    Field::new("init_weights", Harmless, "the initialisation; the file's values replace it"),
    Field::new("inference_mode", Harmless, "PEFT overwrites it when it loads an adapter"),
    Field::new("peft_version", Harmless, "the version that wrote the file"),
    Field::new("auto_mapping", Harmless, "how PEFT finds the model's class; here the caller gives the model"),
    Field::new("base_model_name_or_path", Harmless, "where the model is; here the caller gives the model"),
    Field::new("revision", Harmless, "the version of the model; here the caller gives the model"),
    Field::new("modules_to_save", MustBeFalse, "it replaces whole modules by trained copies"),
];
