"""DGLM: a Gaussian process over sentence vectors proposes, an autoregressive decoder verbalises, guidance acts on the
proposal (Lovelace et al. 2024, arXiv 2408.04220; STAR-LDM, arXiv 2602.20528). ``model.DGLM`` puts the parts together.
"""
