"""Text-to-image diffusion: crops, the DreamBooth objective, pictures from a pipeline, the small shipped pipeline."""

import logging

# Importing a pipeline makes transformers warn that torchvision is missing; nothing here needs it.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision" not in record.getMessage()
)
