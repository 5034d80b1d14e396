"""The stages, one a notebook: train (01), finetune_p (02), whiten (03), evaluate_imagenet (04), evaluate_retrieval (05).

Each reads what the earlier ones left and writes outputs/<experiment>/<stage>/.
"""
