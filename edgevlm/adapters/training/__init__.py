"""Making an adapter on one's own machine, and from one's own pictures and conversations.

    recipe ──▶ data ──▶ samples (prompts as a session sends them, pictures as rows) ──┐
    deployed weights ──▶ decoder (dequantised, frozen) ──▶ LoRA ──▶ loop ──▶ pack ◀──┘

`job.train` does all of it. torch, transformers and peft are imported by `decoder`, `loop`,
`state` and `pack` alone, and these by `job` when the data has been read.
"""
