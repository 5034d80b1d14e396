"""The paper's claims, tried by trainings of several arms, budgets and seeds: notebook 07."""
