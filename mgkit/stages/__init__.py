"""The stages, one per notebook; each reads what earlier ones wrote and writes outputs/<experiment>/<stage>/.

train (01), finetune_p (02), whiten (03), evaluate_imagenet (04), evaluate_retrieval (05).
"""
