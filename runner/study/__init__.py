"""The committed history: the Optuna study, its storage and lock, what is proposed next, and how sure the answer is.
The only room that imports Optuna; it trains nothing and shows nothing."""
