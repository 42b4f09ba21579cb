"""NoRA+ on a causal language model with Hugging Face's Trainer.

    python examples/hf_trainer_nora.py MODEL TEXT_FILE OUTPUT_FOLDER

MODEL is a folder or a Hub name; TEXT_FILE has one training text a line. What NoRA adds to an ordinary LoRA script is
marked. For NoRA without the preconditioner leave out (2) and (3).
"""

import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from torch.optim import AdamW
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from nora.adapters import create_nora_plus_optimizer, nystrom_init_


def main(name: str, text_file: str, output: str, *, steps: int = 100, lr: float = 1e-3) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))

    report = nystrom_init_(model, xi=0.1, seed=0)  # (1) before the optimiser is made
    if not report.passed:
        raise RuntimeError(report.problems)

    optimizer = create_nora_plus_optimizer(model, AdamW, lr=lr, max_grad_norm=1.0)  # (2)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=steps)

    rows = [tokenizer(line, truncation=True, max_length=256) for line in Path(text_file).read_text().splitlines()]
    trainer = Trainer(
        model=model,
        train_dataset=[row for row in rows if len(row["input_ids"]) > 1],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        optimizers=(optimizer, schedule),  # (2)
        args=TrainingArguments(
            output, max_steps=steps, per_device_train_batch_size=8, logging_steps=1, save_strategy="no",
            max_grad_norm=0,  # (3) the optimiser clips, after preconditioning
        ),
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(output)  # an ordinary PEFT adapter, for the untouched base
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:4])
