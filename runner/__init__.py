"""Which learning-rate schedule should I train with, and how sure are you?"""
