"""XXROOM"""
