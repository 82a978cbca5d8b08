"""The base model, its adapter, training and scoring. The only room that knows transformers and PEFT."""
