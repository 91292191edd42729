"""The Streamlit app: looks at a workspace's files. It computes nothing and imports no torch."""
