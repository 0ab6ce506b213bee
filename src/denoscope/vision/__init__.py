"""What looks at pictures: photographs, classifiers, encoders, frames."""
