"""Tables, figures and pages made from run directories, without jax or flax."""
