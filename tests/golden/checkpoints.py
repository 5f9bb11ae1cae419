"""Makes tests/golden/checkpoints: adapter folders as people have them, and what PEFT computes when it loads each of them.

usage: python checkpoints.py        (pip install torch transformers peft; written with the versions it prints)
Every folder is saved by PEFT for the model in tests/golden/model; then some fields of its configuration are changed and
some tensors left out, as happens to folders that are edited by hand or trained by other programs. The logits are what
PeftModel.from_pretrained computes of that in float64. The script checks, too, which initialisations change what a loaded
adapter computes: only those may be refused.
"""
import json, pathlib, shutil, warnings
import peft, torch, transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, GPT2Model

here = pathlib.Path(__file__).resolve().parent
out = here / 'checkpoints'
tokens = torch.tensor([[3, 130, 7, 64, 0, 99, 12, 5]])
everything = ['c_attn', 'c_proj', 'c_fc']
expected = {'tokens': tokens}


def base(cls=GPT2LMHeadModel):
    return cls.from_pretrained(here / 'model', attn_implementation='eager').double().eval()


def save(name, rank=2, cls=GPT2LMHeadModel, **settings):
    """A LoRA on every projection, with random factors; `settings` are what its configuration says afterwards."""
    torch.manual_seed(sum(name.encode()))
    config = LoraConfig(r=rank, lora_alpha=3, target_modules=everything, fan_in_fan_out=True,
                        rank_pattern=settings.get('rank_pattern', {}), alpha_pattern=settings.get('alpha_pattern', {}))
    model = get_peft_model(base(cls), config)
    for key, value in model.named_parameters():
        if 'lora_' in key:
            value.data = torch.randn_like(value) * 0.3
    shutil.rmtree(out / name, ignore_errors=True)
    model.float().save_pretrained(out / name)
    (out / name / 'README.md').unlink()
    change(name, **settings)


def change(name, **settings):
    path = out / name / 'adapter_config.json'
    config = json.loads(path.read_text())
    config.update(settings, base_model_name_or_path=None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + '\n')


def keep(name, wanted):
    path = out / name / 'adapter_model.safetensors'
    save_file({key: value for key, value in load_file(path).items() if wanted(key)}, path, {'format': 'pt'})


def logits(name, cls=GPT2LMHeadModel):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        # Every stored value is exact in float32, and some initialisations want that.
        model = PeftModel.from_pretrained(base(cls).float(), out / name).double().eval()
    for warning in (w for w in said if not issubclass(w.category, FutureWarning)):
        print(f'  {name}: {str(warning.message)[:150]}')
    with torch.no_grad():
        if cls is GPT2LMHeadModel:
            return model(tokens).logits
        return model(tokens).last_hidden_state @ model.get_base_model().wte.weight.T


def case(name, **settings):
    save(name, **settings)
    expected[f'{name}.logits'] = logits(name)


print('transformers', transformers.__version__, 'peft', peft.__version__, 'torch', torch.__version__)
out.mkdir(exist_ok=True)
case('one-layer', target_modules=['c_attn'], layers_to_transform=[1], layers_pattern='h')
case('any-layer', target_modules=['c_proj'], layers_to_transform=0)
case('full-name', target_modules=['transformer.h.0.mlp.c_fc', 'c_proj'], layers_to_transform=[1])
case('expression', target_modules=r'transformer\.h\.\d+\.(?!mlp).*\.c_(attn|proj)')
case('all-linear', target_modules='all-linear', exclude_modules=['mlp.c_fc'])
case('excluded', target_modules=everything, exclude_modules=r'.*(?<=h\.0)\.mlp\..*')
case('default-targets', target_modules=None)
case('patterns', target_modules=everything, rank_pattern={r'h\.0\.(?!mlp).*': 3, 'mlp.c_proj': 1}, use_rslora=True,
     alpha_pattern={r'.*(?<!attn)\.c_proj': 5, 'c_proj': 2})

save('fewer-tensors', target_modules=everything)
keep('fewer-tensors', lambda key: 'c_attn' in key or 'h.1.mlp.c_fc' in key)
expected['fewer-tensors.logits'] = logits('fewer-tensors')

save('bare-names', cls=GPT2Model, target_modules=['c_attn'], layers_to_transform=[0], layers_pattern='h')
expected['bare-names.logits'] = logits('bare-names', GPT2Model)

# PiSSA, trained a little and converted by PEFT into a LoRA for the model as it is.
torch.manual_seed(1)
config = dict(r=2, lora_alpha=3, target_modules=['c_attn'], fan_in_fan_out=True, init_lora_weights='pissa')
start = get_peft_model(base().float(), LoraConfig(**config))
start.peft_config['default'].init_lora_weights = True
start.save_pretrained(out / 'pissa-start')
for key, value in start.named_parameters():
    if 'lora_' in key:
        value.data += torch.randn_like(value) * 0.05
shutil.rmtree(out / 'pissa-converted', ignore_errors=True)
start.save_pretrained(out / 'pissa-converted', path_initial_model_for_weight_conversion=out / 'pissa-start')
(out / 'pissa-converted' / 'README.md').unlink()
shutil.rmtree(out / 'pissa-start')
change('pissa-converted')
expected['pissa-converted.logits'] = logits('pissa-converted')
with torch.no_grad():
    assert (start(tokens).logits - expected['pissa-converted.logits']).abs().max() < 1e-4

# A prefix that was trained behind a projection.
torch.manual_seed(2)
config = PrefixTuningConfig(task_type='CAUSAL_LM', num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16)
model = get_peft_model(base().float(), config)
for value in model.prompt_encoder.parameters():
    value.data = torch.randn_like(value) * 0.3
shutil.rmtree(out / 'projected-prefix', ignore_errors=True)
model.save_pretrained(out / 'projected-prefix')
(out / 'projected-prefix' / 'README.md').unlink()
change('projected-prefix')
expected['projected-prefix.logits'] = logits('projected-prefix')
with torch.no_grad():
    assert (model(tokens).logits - expected['projected-prefix.logits']).abs().max() < 1e-4

# An lm_head of its own, of values that the test makes again: transformers uses it whatever tie_word_embeddings says.
for tied in [True, False]:
    folder = out / 'own-head'
    model = base().float()
    model.save_pretrained(folder)
    weights = load_file(folder / 'model.safetensors')
    vocabulary, d = weights['transformer.wte.weight'].shape
    row, column = torch.arange(vocabulary)[:, None], torch.arange(d)[None, :]
    weights['lm_head.weight'] = ((row * 7 + column * 13) % 17 - 8).float() / 16
    save_file(weights, folder / 'model.safetensors', {'format': 'pt'})
    settings = json.loads((folder / 'config.json').read_text())
    settings['tie_word_embeddings'] = tied
    (folder / 'config.json').write_text(json.dumps(settings))
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation='eager').double().eval()
    with torch.no_grad():
        result = model(tokens).logits
    assert tied or torch.equal(result, expected['own-head.logits'])
    expected['own-head.logits'] = result
    shutil.rmtree(folder)

# Which initialisations change what a complete adapter computes?
save('initialisation', target_modules=['c_attn'])
plain = logits('initialisation')
for init in [False, 'gaussian', 'eva', 'orthogonal', 'mica']:
    change('initialisation', init_lora_weights=init)
    assert torch.equal(plain, logits('initialisation')), init
# (OLoRA changes the weights of nn.Linear; PEFT cannot load it for GPT-2's Conv1D at all.)
for init in ['pissa', 'pissa_niter_4']:
    change('initialisation', init_lora_weights=init)
    assert (plain - logits('initialisation')).abs().max() > 1e-2, init
shutil.rmtree(out / 'initialisation')

save_file({key: value.contiguous() for key, value in expected.items()}, out / 'expected.safetensors')
for key, value in sorted(expected.items()):
    print(key, tuple(value.shape))
